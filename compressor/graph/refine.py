"""Refine a map by trial: freeze what the code objects to, or learn which size it reads, until nothing objects.

What holds throughout: the map is what propagation says and what is `Known` beyond it. A refinement is another `Known`,
taken where a trial of its map objects later in the run than before, or not at all. Only which dimension of a reshape
has the channels is told to propagation itself, which then starts again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from compressor.graph import groups, objections, trial
from compressor.graph.channels import KEPT, Group, Ids
from compressor.graph.kept_sizes import kept_sizes
from compressor.graph.known import Attempt, Known, Map
from compressor.graph.names import labels
from compressor.graph.propagate import Propagation, RawSize
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Trace, Way
from compressor.graph.trial import Copies, Mismatch
from compressor.graph.unions import Unions, leads_of, roots_of
from compressor.graph.ways import beside, left_over

_MOST_TRIALS = 200
Run = tuple[Propagation, Way]


class Refinement:
    """One capture: propagation through the traces of both modes over a shared set of ties, and the search for a map."""

    def __init__(self, replica: Replica, runs: list[tuple[Trace, Way]], never: frozenset[str]) -> None:
        """`runs` holds traces of the replica: in evaluation mode first, then in training mode if it ran.

        `never` are the tensors that no run used.
        """
        self.model = replica.model
        self.beside = beside(self.model, never)  # modules of which nothing is edited that others share, and why
        self.keep: frozenset[str] = frozenset()
        self.runs = runs
        self.replica = replica
        self.tensors = replica.tensors
        self.modules = {n: m for n, m in replica.modules.items() if not isinstance(m, torch.jit.ScriptModule)}
        self.order = dict(runs[0][0].first_use)
        for name in self.tensors:
            self.order.setdefault(name, len(self.order))
        valued = {n: t.is_floating_point() or t.is_complex() for n, t in self.tensors.items()}  # no table of indices
        self.ranks = {name: tensor.ndim if valued[name] else 0 for name, tensor in self.tensors.items()}
        self.left_over = left_over(replica, never)
        self._follow([{} for _ in runs])

    def _follow(self, axes: list[dict[int, int]]) -> None:
        """Propagation through every run from its start, with what is known of its reshapes."""
        self.axes, self.ties = axes, Unions()
        walks = [Propagation(run[0], self.ties, each) for run, each in zip(self.runs, axes, strict=True)]
        for walk in walks:
            walk.follow()
        self.walks: list[Run] = [(walk, *run[1:]) for walk, run in zip(walks, self.runs, strict=True)]
        halved = uneven = self.walks
        if len(walks) == 2 and objections.same_operators(*walks):  # one code: each mode tries it once
            halved, uneven = self.walks[:1], self.walks[1:]
        self.trials = halved, [run for run in uneven if objections.asks_for_sizes(run[0])]
        self.read = [size for walk in walks for size in walk.sizes]

    def refine(self, keep: frozenset[str]) -> tuple[Map, list[str]]:
        """The map to which no trial objects, with notes on sizes that it leaves as they are.

        `keep` names modules and tensors whose channels stay as they are.
        """
        self.keep = keep
        start = self._map(Known())
        kept, notes = self._kept_sizes(start)
        first = self._tried(self._with_sizes(start, kept))
        if first.objection is None:  # as in most networks
            return self._bounded(first.map), notes
        found = self._bounded(self._searched(self._tried(start) if kept else first))
        kept, notes = self._kept_sizes(found)
        return self._with_kept(found, kept), notes

    def _map(self, known: Known) -> Map:
        ties = known.beyond(self.ties)
        leads = leads_of(ties)
        numbered = groups.Numbered(roots_of(ties, leads), leads)
        identities = groups.identities(ties, numbered)
        found = tuple(map(self._kept, groups.grouped(ties, numbered, self.ranks, self.order)))
        sizes = groups.sizes((*self.read, *known.sizes), self.modules, numbered)
        return Map(known, ties, numbered, identities, found, sizes)

    def _with_sizes(self, found: Map, more: Iterable[RawSize]) -> Map:
        known = replace(found.known, sizes=(*found.known.sizes, *more))
        return replace(found, known=known, sizes=groups.sizes(more, self.modules, found.numbered, found.sizes))

    def _kept_sizes(self, found: Map) -> tuple[list[RawSize], list[str]]:
        known = {(size.module, size.attribute) for size in found.sizes}
        return kept_sizes(self.walks[0][0], found.numbered, self.modules, known)

    def _kept(self, group: Group) -> Group:
        if group.frozen is None and not self.keep.isdisjoint(labels(group)):
            return replace(group, frozen=KEPT)
        for name, reason in self.beside.items():
            within = [place.tensor.startswith(f"{name}.") for place in group.places]
            if group.frozen is None and any(within) and not all(within):
                return replace(group, frozen=reason)
        for place in group.places if group.frozen is None else ():
            for other in self.left_over.get(place.tensor.rpartition(".")[0], ()):
                if len(group.ids) in self.tensors[other].shape:
                    return replace(group, frozen=f"{other}, which no run used, has as many channels")
        return group

    def _searched(self, attempt: Attempt) -> Map:
        """Freeze, or learn the stored size of, whatever the trials object to, until they run as the map predicts."""
        seen: Counter[tuple[int, int]] = Counter()
        for _ in range(_MOST_TRIALS):
            found = attempt.objection
            if found is None:
                return attempt.map
            turned = self._turned(found)
            if turned is not None:
                self._follow(turned)
                seen.clear()
                attempt = self._tried(self._map(Known(least=attempt.map.known.least)))
                continue
            place = (id(found.walk), found.op)
            better = None if seen[place] else self._better(attempt.map, found)
            if better is None:
                touched = self._touched(found, widen=seen[place])
                known = attempt.map.known.freezing((ids for each in touched for ids in each), found.reason)
                better = self._tried(self._map(known))
                seen[place] += 1
            attempt = better
        return self._map(
            attempt.map.known.freezing(self.ties.blocks.values(), "the model's code objects to every edit")
        )

    def _better(self, found: Map, objection: Mismatch) -> Attempt | None:
        """The first refinement that goes further."""
        ways = [self._learnt, self._borrowed, self._evened, self._spared]
        if any(size != before for *_, size, before in objection.wanted()):
            ways[:2] = self._borrowed, self._learnt
        tried = (self._tried(self._map(known)) for way in ways for known in way(found, objection))
        return next((attempt for attempt in tried if attempt.goes_further(objection)), None)

    def _tried(self, found: Map) -> Attempt:
        halved, uneven = self.trials
        objection = self._objection(found, trial.half(found.groups, len(found.roots), found.known.least), halved)
        # Where parts of a dimension are channels of their own, numbers may agree by chance.
        for seed in () if objection or not uneven else (1, 2, 3) if self.ties.apart else (1,):
            objection = objection or self._objection(found, trial.uneven(found.groups, len(found.roots), seed), uneven)
        return Attempt(found, objection)

    def _objection(self, found: Map, copies: Copies, runs: Iterable[Run]) -> Mismatch | None:
        if (copies == 1).all():
            return None
        with trial.edited(self.replica, found.identities, found.sizes, copies) as edited:
            tried = (trial.mismatch(edited, way, walk, copies, found.roots, found.ties) for walk, way in runs)
            return next((objection for objection in tried if objection is not None), None)

    def _bounded(self, found: Map) -> Map:
        """Leave to be pruned only, never grown, what objects to more channels, until nothing does.

        Code that takes the first so many channels, as many as there are, shows only then: torch runs an `alias` there.
        """
        if not objections.asks_for_sizes(self.walks[0][0]):
            return found
        seen: Counter[int] = Counter()
        while objection := self._objection(found, trial.grown(found.groups, len(found.roots)), self.walks[:1]):
            op = objection.walk.trace.ops[objection.op]
            reason = f"{op.name} in {op.module or 'the model'} does not run with more channels"
            touched = self._touched(objection, widen=seen[objection.op])
            marks = ((ids, reason) for arrays in touched for ids in arrays)
            found = self._map(replace(found.known, prune_only=(*found.known.prune_only, *marks)))
            seen[objection.op] += 1
        return found

    def _with_kept(self, found: Map, kept: list[RawSize]) -> Map:
        """Learn the sizes that a class keeps for later, those of them to which no trial objects."""
        while kept:
            more = self._with_sizes(found, kept)
            copies = trial.half(found.groups, len(found.roots), found.known.least)
            objection = self._objection(more, copies, self.trials[0])
            if objection is None:
                return more
            at = objection.walk.trace.ops[objection.op].module
            gone = {(size.attribute, id(size.ids)) for size in kept if objections.inside(at, size.module)}
            kept = [size for size in kept if (size.attribute, id(size.ids)) not in gone] if gone else []
        return found

    def _turned(self, objection: Mismatch) -> list[dict[int, int]] | None:
        """What is known of every run's reshapes once the one that objects, and its like in this code, has its channels
        on another dimension: the one whose size followed them. None where that says nothing new.
        """
        walk = objection.walk
        dims, [held, *_] = walk.choices.get(objection.op, ()), walk.op_outputs[objection.op]
        before = walk.trace.ops[objection.op].outputs[0].shape if dims else ()
        follow = [dim for _, dim, size in objection.asked if dim in dims and size != before[dim]]
        if not objection.asked:  # the code failed before it came to the operator
            follow = [dim for dim in dims if dim not in held][:1]
        if len(follow) != 1 or follow[0] in held:
            return None
        axes = [dict(each) for each in self.axes]
        every = [each for each, _ in self.walks]
        for run, other, number in objections.same_reshapes(objection.op, walk, self.model, every):
            if len(other.choices[number]) == len(dims):
                axes[run].setdefault(number, other.choices[number][dims.index(follow[0])])
        return axes if axes != self.axes else None

    def _borrowed(self, found: Map, objection: Mismatch) -> Iterator[Known]:
        """Tie channels to others whose number the code takes for theirs, and freeze those of a fixed number."""
        walk, known = objection.walk, found.known
        asked = list(objection.wanted())
        if walk.trace.ops[objection.op].operator.kind == "slice":  # what it takes depends on the channels before
            return
        if all(size == before for _, size, before in asked):
            return
        for ids, size, before in asked:
            if size == before:
                known = known.freezing([ids], objection.reason)
                continue
            touched = (other for each in walk.op_inputs[: objection.op + 1] for other in each if len(other) == before)
            counting = [other for other in touched if int(objection.copies[found.roots[other]].sum()) == size]
            known = known.tying(counting[-1], ids) if counting else known
        yield known

    def _learnt(self, found: Map, objection: Mismatch) -> Iterator[Known]:
        """Keep an attribute true that the running module read a size from, everywhere in this code.

        One attribute that counts two kinds of channels ties them: they stay equally many. What failed before the
        operator ran is the code around its module.
        """
        walk = objection.walk
        for outwards in (0,) if objection.asked else (0, 1):
            numbers = objections.same_code(objection.op, walk, self.model)
            alternatives = [self._stored(walk, number, outwards) for number in numbers]
            for names in self._stored(walk, objection.op, outwards):
                known = found.known
                for size in (size for each in alternatives for size in each.get(names, ())):
                    known = self._keeping(found, known, size)
                if known is not found.known:
                    yield known

    def _stored(self, walk: Propagation, number: int, outwards: int) -> dict[objections.Named, list[RawSize]]:
        """Alternatives of attributes that may hold what an operator used, by their names."""
        path = walk.trace.ops[number].module.split(".")
        module = ".".join(path[: max(0, len(path) - outwards)])
        return objections.stored_sizes(number, walk, module, self.model.get_submodule(module), self.model)

    def _keeping(self, found: Map, known: Known, size: RawSize) -> Known:
        """With a size, or with its channels tied to those that it is known to count; unchanged where that is old."""
        same = (s.ids for s in (*self.read, *known.sizes) if (s.module, s.attribute) == (size.module, size.attribute))
        counted = next(same, None)
        if counted is None:
            return replace(known, sizes=(*known.sizes, size))
        new = len(counted) == len(size.ids) and not np.array_equal(found.roots[counted], found.roots[size.ids])
        return known.tying(counted, size.ids) if new else known

    def _evened(self, found: Map, objection: Mismatch) -> Iterator[Known]:
        """Tie the parts into which slices cut a dimension evenly, as `chunk` does; then learn a size besides."""
        parts = objections.parts(objection.walk.trace.ops[objection.op], objection.walk)
        if parts is not None:
            known = found.known.tying(np.broadcast_to(parts[0], parts[1:].shape).ravel(), parts[1:].ravel())
            yield known
            yield from self._learnt(self._map(known), objection)

    def _spared(self, found: Map, objection: Mismatch) -> Iterator[Known]:
        """Leave two channels of small groups where a single one is all that is objected to.

        Torch refuses a weight that is standardised over one value. Of each group two numbers of channels have to run:
        one alone could agree by chance with what the code asks for.
        """
        copies = trial.half(found.groups, len(found.roots), found.known.least)
        free = [group for group in found.groups if group.frozen is None and group.size > 3]
        alone = [group for group in free if copies[group.ids].sum() == 1]
        few, fewer = (
            replace(found.known, least={**found.known.least, **{group.name: group.size - gone for group in alone}})
            for gone in (1, 2)
        )
        if alone and self._tried(self._map(few)).goes_further(objection):
            yield fewer

    def _touched(self, objection: Mismatch, widen: int) -> list[list[Ids]]:
        """What meets at an operator that objects, and at the same place of every module of the same class: one code.

        An operator that still objects took its size from something else: `widen` then adds whatever came before it in
        its module, then whatever came before it at all, and at last everything.
        """
        walk = objection.walk
        if widen > 2:
            return [list(self.ties.blocks.values())]
        if widen > 1:
            return walk.op_inputs[: objection.op + 1]
        numbers = objections.same_code(objection.op, walk, self.model)
        if widen:
            return [ids for number in numbers for ids in objections.earlier_in_module(number, walk, self.model)]
        tracks = ([ids for track in walk.op_outputs[number] for ids in track.values()] for number in numbers)
        return [walk.op_inputs[number] or made for number, made in zip(numbers, tracks, strict=True)]
