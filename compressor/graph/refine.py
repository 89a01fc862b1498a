"""Refine a map by trial: freeze what the code objects to, or learn which size it reads, until nothing objects."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compressor.graph import probe, resolve
from compressor.graph.channels import KEPT, Group, Ids, Size
from compressor.graph.kept_sizes import kept_sizes
from compressor.graph.names import labels
from compressor.graph.skeleton import Replica
from compressor.graph.tensors import named_modules, named_tensors
from compressor.graph.trace import Trace, Way
from compressor.graph.walk import RawSize, Ties, Walk
from compressor.graph.ways import beside, left_over

_MOST_TRIALS = 200
Run = tuple[Walk, Way]


class Refinement:
    """One capture: the traces of both modes over a shared set of ties, refined by trial until nothing objects."""

    def __init__(
        self, model: nn.Module, replica: Replica, runs: list[tuple[Trace, Way]], never: frozenset[str]
    ) -> None:
        """`runs` holds traces of the replica: in evaluation mode first, then in training mode if it ran.

        `never` are the tensors that no run used.
        """
        self.model = model
        self.beside = beside(model, never)  # modules of which nothing is edited that others share, and why
        self.keep: frozenset[str] = frozenset()
        self.least: dict[str, int] = {}  # groups of which a trial leaves more than one channel
        self.runs = runs
        self.axes: list[dict[int, int]] = [{} for _ in runs]  # of each run, what is known of its reshapes
        self.patient = probe.Patient(replica)
        self.tensors = named_tensors(model)
        self.modules = {n: m for n, m in named_modules(model).items() if not isinstance(m, torch.jit.ScriptModule)}
        order = {name: place for place, name in enumerate(self.tensors)}
        self.order = probe.first_use(runs[0][0], order)
        valued = {n: t.is_floating_point() or t.is_complex() for n, t in self.tensors.items()}  # no table of indices
        self.ranks = {name: tensor.ndim if valued[name] else 0 for name, tensor in self.tensors.items()}
        self.notes: list[str] = []
        self.found: list[RawSize] = []
        self.sizes: tuple[Size, ...] = ()
        self.left_over = left_over(replica, never)
        self._follow()

    def refine(self, keep: frozenset[str]) -> None:
        """Run trials until nothing objects; the result stands in `groups`, `identities`, `sizes` and `numbered`.

        `keep` names modules and tensors whose channels stay as they are.
        """
        self.keep = keep
        self._resolve()
        kept, self.notes = self._kept_sizes()
        learnt = self.found
        self.found = learnt + kept
        self._size()
        if self._trial() is None:  # as in most networks
            self._bound()
            return
        self.found = learnt
        self._refine()
        self._bound()
        self._keep_sizes()

    def _follow(self) -> None:
        """Walk through every run from its start: what trials have shown is forgotten, except of reshapes."""
        self.ties = Ties()
        walks = [Walk(run[0], self.ties, axes) for run, axes in zip(self.runs, self.axes, strict=True)]
        for walk in walks:
            walk.follow()
        self.walks: list[Run] = [(walk, *run[1:]) for walk, run in zip(walks, self.runs, strict=True)]
        self.trials = self.walks, self.walks
        if len(walks) == 1 or (len(walks) == 2 and probe.same_operators(*walks)):  # one code: each mode tries it once
            self.trials = self.walks[:1], self.walks[-1:] if probe.asks_for_sizes(walks[-1]) else []
        self.found = [size for walk in walks for size in walk.sizes]
        self.vectors = resolve.vector_sizes(self.ties, self.modules)

    def _resolve(self) -> None:
        self.roots = resolve.roots_of(self.ties)
        self.numbered = numbered = resolve.Numbered(self.roots)
        self.identities = resolve.identities(self.ties, numbered)
        self.groups = tuple(map(self._kept, resolve.groups(self.ties, numbered, self.ranks, self.order)))
        self._size()

    def _size(self) -> None:
        self.sizes = resolve.sizes((*self.found, *self.vectors), self.modules, self.numbered)

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

    def _refine(self) -> None:
        """Freeze, or learn the stored size of, whatever the trials object to, until they run as the map predicts."""
        seen: Counter[tuple[int, int]] = Counter()
        self._try()
        for _ in range(_MOST_TRIALS):
            if self.objected is None:
                return
            walk, objection = self.objected
            place = (id(walk), objection.op)
            if self._turn(walk, objection):
                seen.clear()
                self._try()
                continue
            ways = [self._learn, self._borrow, self._even, self._spare]
            if any(size != before for *_, size, before in self._asked(walk, objection)):
                ways[:2] = self._borrow, self._learn
            if seen[place] or not any(way(walk, objection) for way in ways):
                self._freeze(walk, objection, widen=seen[place])
                seen[place] += 1
                self._try()
        self.ties.frozen.extend((ids, "the model's code objects to every edit") for ids in self.ties.blocks.values())
        self._resolve()

    def _try(self) -> tuple[Walk, probe.Objection] | None:
        """What the trials object to, which also stands in `objected`; the map is then as the ties say."""
        self._resolve()
        self.objected = self._trial()
        return self.objected

    def _trial(self) -> tuple[Walk, probe.Objection] | None:
        halved, uneven = self.trials
        found = self._objection(probe.half(self.groups, len(self.roots), self.least), halved)
        # Where parts of a dimension are channels of their own, numbers may agree by chance.
        for seed in () if found or not uneven else (1, 2, 3) if self.ties.apart else (1,):
            found = found or self._objection(probe.uneven(self.groups, len(self.roots), seed), uneven)
        return found

    def _bound(self) -> None:
        """Leave to be pruned only, never grown, what objects to more channels, until nothing does.

        Code that takes the first so many channels, as many as there are, shows only then: torch runs an `alias` there.
        """
        if not probe.asks_for_sizes(self.walks[0][0]):
            return
        seen: Counter[int] = Counter()
        while found := self._objection(probe.grown(self.groups, len(self.roots)), self.walks[:1]):
            walk, objection = found
            op = walk.trace.ops[objection.op]
            reason = f"{op.name} in {op.module or 'the model'} does not run with more channels"
            touched = self._touched(walk, objection.op, widen=seen[objection.op])
            self.ties.prune_only.extend((ids, reason) for arrays in touched for ids in arrays)
            seen[objection.op] += 1
            self._resolve()

    def _keep_sizes(self) -> None:
        """Learn the sizes that a class keeps for later, those of them to which no trial objects."""
        found, self.notes = self._kept_sizes()
        before = self.found
        while found:
            self.found = before + found
            self._size()
            objection = self._objection(probe.half(self.groups, len(self.roots), self.least), self.trials[0])
            if objection is None:
                return
            at = objection[0].trace.ops[objection[1].op].module
            gone = {(size.attribute, id(size.ids)) for size in found if probe.inside(at, size.module)}
            found = [size for size in found if (size.attribute, id(size.ids)) not in gone] if gone else []
        self.found = before
        self._size()

    def _kept_sizes(self) -> tuple[list[RawSize], list[str]]:
        known = {(size.module, size.attribute) for size in self.sizes}
        return kept_sizes(self.walks[0][0], self.numbered, self.modules, known)

    def _objection(self, copies: probe.Copies, runs: Iterable[Run]) -> tuple[Walk, probe.Objection] | None:
        if (copies == 1).all():
            return None
        self.copies = copies  # of the last trial
        with self.patient.edited(self.identities, self.sizes, copies) as edited:
            for walk, way in runs:
                found = probe.objection(edited, way, walk, copies, self.roots)
                if found is not None:
                    return walk, found
        return None

    def _turn(self, walk: Walk, objection: probe.Objection) -> bool:
        """Let channels go on another dimension of a reshape, the one whose size followed them; everywhere in this code.

        The walks start again.
        """
        dims, [held, *_] = walk.choices.get(objection.op, ()), walk.op_outputs[objection.op]
        before = walk.trace.ops[objection.op].outputs[0].shape if dims else ()
        follow = [dim for _, dim, size in objection.asked if dim in dims and size != before[dim]]
        if not objection.asked:  # the code failed before it came to the operator
            follow = [dim for dim in dims if dim not in held][:1]
        if len(follow) != 1 or follow[0] in held:
            return False
        turned = False
        for axes, other, number in self._same_reshapes(walk, objection.op):
            if len(other.choices[number]) == len(dims) and number not in axes:
                axes[number] = other.choices[number][dims.index(follow[0])]
                turned = True
        if turned:
            self._follow()
        return turned

    def _same_reshapes(self, walk: Walk, number: int) -> Iterator[tuple[dict[int, int], Walk, int]]:
        """Of every run: where its axes are kept, its walk, and the same reshape in every module of the same class.

        A module without submodules is a layer like any other, whose numbers are its own.
        """
        module = walk.trace.ops[number].module
        kind = type(self.modules.get(module)) if any(self.model.get_submodule(module).children()) else None
        turn = [each for each in walk.choices if walk.trace.ops[each].module == module].index(number)
        for axes, (other, *_) in zip(self.axes, self.walks, strict=True):
            of_module: dict[str, list[int]] = {}
            for each in other.choices:
                of_module.setdefault(other.trace.ops[each].module, []).append(each)
            for name, numbers in of_module.items():
                if (name == module or type(self.modules.get(name)) is kind) and turn < len(numbers):
                    yield axes, other, numbers[turn]

    def _borrow(self, walk: Walk, objection: probe.Objection) -> bool:
        """Tie channels to others whose number the code takes for theirs, and freeze those of a fixed number."""
        pairs, frozen = list(self.ties.pairs), list(self.ties.frozen)
        if walk.trace.ops[objection.op].operator.kind == "slice":  # what it takes depends on the channels before
            return False
        asked = list(self._asked(walk, objection))
        if all(size == before for _, size, before in asked):
            return False
        for ids, size, before in asked:
            others = self._counting(walk, objection.op, before, size)
            if size == before:
                self.ties.frozen = [*self.ties.frozen, (ids, objection.reason)]
            elif others:
                self.ties.pairs = [*self.ties.pairs, (others[-1], ids)]
        if self._moves_on(walk, objection):
            return True
        self.ties.pairs, self.ties.frozen = pairs, frozen
        return False

    def _asked(self, walk: Walk, objection: probe.Objection) -> Iterator[tuple[Ids, int, int]]:
        """Channels of which the code wants another number than the map has, with that number and the one at first."""
        for output, dim, size in objection.asked:
            ids = walk.op_outputs[objection.op][output].get(dim)
            if ids is not None and not walk.is_made(ids):
                yield ids, size, len(ids)

    def _counting(self, walk: Walk, op: int, width: int, size: int) -> list[Ids]:
        """Channels before an operator that were so many, and of which the last trial left so many."""
        arrays = (ids for touched in walk.op_inputs[: op + 1] for ids in touched if len(ids) == width)
        return [ids for ids in arrays if int(self.copies[self.roots[ids]].sum()) == size]

    def _learn(self, walk: Walk, objection: probe.Objection) -> bool:
        """Keep an attribute true that the running module read a size from, if that moves the objection further on.

        One attribute that counts two kinds of channels ties them: they stay equally many. What failed before the
        operator ran is the code around its module.
        """
        return self._learn_of(walk, objection, 0) or (not objection.asked and self._learn_of(walk, objection, 1))

    def _learn_of(self, walk: Walk, objection: probe.Objection, outwards: int) -> bool:
        """The same of the module `outwards` levels around the operator's, and of every module of the same code."""
        found, pairs = list(self.found), list(self.ties.pairs)
        alternatives = [
            self._stored(walk, number, outwards) for number in probe.same_code(objection.op, walk, self.model)
        ]
        for names in self._stored(walk, objection.op, outwards):
            self.found, self.ties.pairs = list(found), list(pairs)
            learnt = [self._keep_true(size) for each in alternatives for size in each.get(names, ())]
            if any(learnt) and self._moves_on(walk, objection):
                return True
        self.found, self.ties.pairs = found, pairs
        return False

    def _stored(self, walk: Walk, number: int, outwards: int) -> dict[tuple[str, ...], list[RawSize]]:
        """Alternatives of attributes that may hold what an operator used, by their names."""
        path = walk.trace.ops[number].module.split(".")
        module = ".".join(path[: max(0, len(path) - outwards)])
        found: dict[tuple[str, ...], list[RawSize]] = {}
        for alternative in probe.stored_sizes(number, walk, self.model.get_submodule(module), self.model):
            sizes = [RawSize(module, name if at is None else f"{name}.{at}", ids) for name, at, ids in alternative]
            found.setdefault(tuple(size.attribute for size in sizes), sizes)
        return found

    def _keep_true(self, size: RawSize) -> bool:
        """Add a size, or tie its channels to those that it is known to count; whether that says anything new."""
        held = ((s.module, s.attribute) == (size.module, size.attribute) for s in self.found)
        known = next((s.ids for s, same in zip(self.found, held, strict=True) if same), None)
        if known is None:
            self.found.append(size)
        elif len(known) == len(size.ids) and self._differ(known, size.ids):
            self.ties.pairs.append((known, size.ids))
        else:
            return False
        return True

    def _differ(self, one: Ids, two: Ids) -> bool:
        return not np.array_equal(self.roots[one], self.roots[two])

    def _even(self, walk: Walk, objection: probe.Objection) -> bool:
        """Tie the parts into which slices cut a dimension evenly, as `chunk` does, if that moves the objection on."""
        parts = probe.parts(walk.trace.ops[objection.op], walk)
        if parts is None:
            return False
        pairs = list(self.ties.pairs)
        walk.tie_rows(parts)
        if self._moves_on(walk, objection) or self._learn(walk, objection):
            return True
        self.ties.pairs = pairs
        return False

    def _spare(self, walk: Walk, objection: probe.Objection) -> bool:
        """Leave two channels of small groups where a single one is all that is objected to.

        Torch refuses a weight that is standardised over one value. Of each group two numbers of channels have to run:
        one alone could agree by chance with what the code asks for.
        """
        copies = probe.half(self.groups, len(self.roots), self.least)
        free = [group for group in self.groups if group.frozen is None and group.size > 3]
        alone = [group for group in free if copies[group.ids].sum() == 1]
        before = self.least
        for gone in (1, 2):
            self.least = before | {group.name: group.size - gone for group in alone}
            if not alone or not self._moves_on(walk, objection):
                self.least = before
                return False
        return True

    def _moves_on(self, walk: Walk, objection: probe.Objection) -> bool:
        found = self._try()
        return found is None or (found[0] is walk and found[1].op > objection.op)

    def _freeze(self, walk: Walk, objection: probe.Objection, widen: int) -> None:
        touched = self._touched(walk, objection.op, widen)
        self.ties.frozen.extend((ids, objection.reason) for arrays in touched for ids in arrays)

    def _touched(self, walk: Walk, op: int, widen: int) -> list[list[Ids]]:
        """What meets at an operator that objects, and at the same place of every module of the same class: one code.

        An operator that still objects took its size from something else: `widen` then adds whatever came before it in
        its module, then whatever came before it at all, and at last everything.
        """
        if widen > 2:
            return [list(self.ties.blocks.values())]
        if widen > 1:
            return walk.op_inputs[: op + 1]
        numbers = probe.same_code(op, walk, self.model)
        return [ids for number in numbers for ids in self._meeting(walk, number, bool(widen))]

    def _meeting(self, walk: Walk, number: int, widen: bool) -> list[list[Ids]]:
        if widen:
            return probe.earlier_in_module(number, walk, self.model)
        return [walk.op_inputs[number] or [ids for track in walk.op_outputs[number] for ids in track.values()]]
