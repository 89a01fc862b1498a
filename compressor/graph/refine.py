"""Refine a map by trial: freeze what the code objects to, or learn which size it reads, until nothing objects."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compressor.graph import probe, resolve
from compressor.graph.channels import KEPT, Group, Ids
from compressor.graph.kept_sizes import kept_sizes, note
from compressor.graph.names import labels
from compressor.graph.rules import rule_of
from compressor.graph.skeleton import Replica
from compressor.graph.tensors import named_tensors
from compressor.graph.trace import Trace, Way
from compressor.graph.walk import RawSize, Ties, Walk
from compressor.graph.ways import left_over

_MOST_TRIALS = 200
Run = tuple[Walk, Way]


class Refinement:
    """One capture: the traces of both modes over a shared set of ties, refined by trial until nothing objects."""

    def __init__(
        self, model: nn.Module, replica: Replica, runs: list[tuple[Trace, Way]], beside: Mapping[str, str]
    ) -> None:
        """`runs` holds traces of the replica: in evaluation mode first, then in training mode if it ran.

        Of the modules in `beside` nothing is edited that other modules share; it holds the reasons.
        """
        self.model = model
        self.beside = beside
        self.keep: frozenset[str] = frozenset()
        self.least: dict[str, int] = {}  # groups of which a trial leaves more than one channel
        self.ties = Ties()
        self.patient = probe.Patient(replica)
        self.walks: list[Run] = [(self._walk(trace), way) for trace, way in runs]
        self.trials = self.walks, self.walks
        if len(self.walks) == 2 and probe.same_operators(*(walk for walk, _ in self.walks)):
            # One code: each mode tries it in one way.
            self.trials = self.walks[:1], self.walks[1:] if probe.asks_for_sizes(self.walks[1][0]) else []
        self.tensors = named_tensors(model)
        self.modules = {n: m for n, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)}
        order = {name: place for place, name in enumerate(self.tensors)}
        self.order = probe.first_use(runs[0][0], order)
        valued = {n: t.is_floating_point() or t.is_complex() for n, t in self.tensors.items()}  # no table of indices
        self.ranks = {name: tensor.ndim if valued[name] else 0 for name, tensor in self.tensors.items()}
        self.notes: list[str] = []
        self.left_over = left_over(replica, runs)
        self.found: list[RawSize] = [size for walk, _ in self.walks for size in walk.sizes]

    def refine(self, keep: frozenset[str]) -> None:
        """Run trials until nothing objects; the result stands in `groups`, `identities`, `sizes` and `numbered`.

        `keep` names modules and tensors whose channels stay as they are.
        """
        self.keep = keep
        self._refine()
        self._bound()
        self._keep_sizes()

    def _walk(self, trace: Trace) -> Walk:
        walk = Walk(trace, self.ties)
        walk.follow(rule_of)
        return walk

    def _resolve(self) -> None:
        self.roots = resolve.roots_of(self.ties)
        self.numbered = numbered = resolve.Numbered(self.roots)
        self.identities = resolve.identities(self.ties, numbered)
        self.groups = tuple(map(self._kept, resolve.groups(self.ties, numbered, self.ranks, self.order)))
        self.sizes = resolve.sizes(self.found, self.ties, self.modules, numbered)

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
        for _ in range(_MOST_TRIALS):
            found = self._try()
            if found is None:
                return
            walk, objection = found
            place = (id(walk), objection.op)
            ways = (self._learn, self._even, self._spare)
            if seen[place] or not any(way(walk, objection) for way in ways):
                self._freeze(walk, objection, widen=seen[place])
                seen[place] += 1
        self.ties.frozen.extend((ids, "the model's code objects to every edit") for ids in self.ties.blocks.values())
        self._resolve()

    def _try(self) -> tuple[Walk, probe.Objection] | None:
        self._resolve()
        halved, uneven = self.trials
        found = self._objection(probe.half(self.groups, len(self.roots), self.least), halved)
        return found or (self._objection(probe.uneven(self.groups, len(self.roots)), uneven) if uneven else None)

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
        known = {(s.module, s.attribute if s.index is None else f"{s.attribute}.{s.index}") for s in self.sizes}
        found, unclear = kept_sizes(self.walks[0][0], self.numbered, self.modules, known)
        before = self.found
        while found:
            self.found = before + found
            objection = self._try()
            if objection is None:
                break
            at = objection[0].trace.ops[objection[1].op].module
            left = [size for size in found if not probe.inside(at, size.module)]
            found = left if len(left) < len(found) else []
        else:
            self.found = before
            self._resolve()
        self.notes = [note(unclear)] if unclear else []

    def _objection(self, copies: probe.Copies, runs: Iterable[Run]) -> tuple[Walk, probe.Objection] | None:
        if (copies == 1).all():
            return None
        with self.patient.edited(self.identities, self.sizes, copies) as edited:
            for walk, way in runs:
                found = probe.objection(edited, way, walk, copies, self.roots)
                if found is not None:
                    return walk, found
        return None

    def _learn(self, walk: Walk, objection: probe.Objection) -> bool:
        """Keep an attribute true that the running module read a size from, if that moves the objection further on.

        One attribute that counts two kinds of channels ties them: they stay equally many.
        """
        op = walk.trace.ops[objection.op]
        found, pairs = list(self.found), list(self.ties.pairs)
        known = {(size.module, size.attribute): size.ids for size in reversed(found)}
        for alternative in probe.stored_sizes(objection.op, walk, self.model):
            named = [RawSize(op.module, name if at is None else f"{name}.{at}", ids) for name, at, ids in alternative]
            fresh = [size for size in named if (size.module, size.attribute) not in known]
            others = [(known[size.module, size.attribute], size.ids) for size in named if size not in fresh]
            tied = [(one, two) for one, two in others if len(one) == len(two) and self._differ(one, two)]
            if fresh or tied:
                self.found, self.ties.pairs = found + fresh, pairs + tied
                if self._moves_on(walk, objection):
                    return True
        self.found, self.ties.pairs = found, pairs
        return False

    def _differ(self, one: Ids, two: Ids) -> bool:
        return not np.array_equal(self.roots[one], self.roots[two])

    def _even(self, walk: Walk, objection: probe.Objection) -> bool:
        """Tie the parts into which slices cut a dimension evenly, as `chunk` does, if that moves the objection on."""
        parts = probe.parts(walk.trace.ops[objection.op], walk)
        if parts is None:
            return False
        pairs = list(self.ties.pairs)
        walk.tie_rows(parts)
        if self._moves_on(walk, objection):
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
