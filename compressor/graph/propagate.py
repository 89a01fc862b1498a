"""Follow the channels of every tensor through a trace: which identities meet, which may not be touched.

Each dimension of each parameter gets a block of fresh identities. For every tensor of the trace we keep, for each
dimension that holds channels, one identity per position; the rules say how an operator moves them and which of them
it ties together. Ties are collected as pairs of arrays and resolved once at the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from compressor.graph.channels import Ids
from compressor.graph.records import Op, TensorRef, Trace
from compressor.graph.unions import Unions

Track = dict[int, Ids]  # dimension -> identities, one per position


class RawCost(NamedTuple):
    """Multiply-adds of one operator: `factor` times the number of channels in each axis."""

    module: str
    factor: int
    axes: tuple[Ids, ...]


class RawSize(NamedTuple):
    """An attribute of a module that counts these channels."""

    module: str
    attribute: str
    ids: Ids


class Propagation:
    """One way through a trace: the track of every tensor so far, and what each operator gave."""

    def __init__(self, trace: Trace, ties: Unions, axes: Mapping[int, int] | None = None) -> None:
        """`axes` says of reshapes, by the operator's number, on which of several dimensions channels may go."""
        self.trace = trace
        self.ties = ties
        self.axes = axes or {}
        self.number = 0  # of the operator at hand
        self.choices: dict[int, tuple[int, ...]] = {}  # dimensions among which `axes` chooses
        self.costs: list[RawCost] = []
        self.sizes: list[RawSize] = []
        self.op_inputs: list[list[Ids]] = []  # for each operator, all identities that touch it
        self.op_outputs: list[list[Track]] = []  # for each operator, the track of each of its outputs
        self._tracks: dict[int, Track] = {}
        # For every tensor computed from parameters and constants alone, the parameters it is computed from.
        self._sources: dict[int, tuple[TensorRef, ...]] = {}
        self._plain = set(trace.parameters)  # tensors that hold a parameter's values as they are
        self._base: dict[int, int] = {}  # of a view, the tensor that it looks at
        self._used = {ref.index for op in trace.ops for ref in op.inputs}
        self._used.update(ref.index for ref in (*trace.outputs, *(ref for ref, _ in trace.left)))
        self._computes_weight = False  # whether the operator at hand sees no features

    def follow(self) -> None:
        """Apply to every operator its rule; those that no channels reach matter only where they make tensors."""
        for number, op in enumerate(self.trace.ops):
            self.number = number
            if op.operator.kind == "batch norm":
                self._lend(op)
            tracks = [self.track(ref) for ref in op.inputs]
            touched = [ids for track in tracks for ids in track.values()]
            self._computes_weight = all(ref.index in self._sources for ref in op.inputs)
            if touched or op.operator.makes:
                op.operator.rule(self, op)
            self._count(op)
            self._mark_weights(op)
            self.op_inputs.append(touched)
            self.op_outputs.append([self._tracks.get(ref.index, {}) for ref in op.outputs])
        for ref in self.trace.outputs:
            self.freeze_all(self.track(ref).values(), "output of the model")
        for ref, where in self.trace.left:
            if not self.is_weight(ref):  # one that is computed from weights is computed again
                self.freeze_all(self.track(ref).values(), where)
        if self.trace.strange:
            unread = (ref for op in self.trace.ops for ref in op.outputs if not self.is_used(ref))
            for ref in unread:
                self.freeze_all(self.track(ref).values(), UNSEEN)

    def _lend(self, op: Op) -> None:
        """A norm's vectors that are met for the first time hold the channels that it norms, where these are a block:
        identities of their own would be tied to these at once.
        """
        ids = self.track(op.inputs[0]).get(1)
        if ids is not None and id(ids) in self.ties.fresh_blocks and not self.is_made(ids):
            for ref in op.inputs[1:]:
                if ref.index in self.trace.parameters and ref.shape == (len(ids),):
                    self.ties.blocks.setdefault((self.trace.parameters[ref.index], 0), ids)

    def track(self, ref: TensorRef) -> Track:
        known = self._tracks.get(ref.index)
        if known is None:
            known = self._tracks[ref.index] = self._first_track(ref)
        return known

    def _first_track(self, ref: TensorRef) -> Track:
        name = self.trace.parameters.get(ref.index)
        if name is None:
            return {}
        self._sources[ref.index] = (ref,)
        track: Track = {}
        for dim, size in enumerate(ref.shape):
            if size > 1:
                ids = self.ties.blocks.get((name, dim))
                track[dim] = self.ties.blocks[name, dim] = self.ties.fresh(size) if ids is None else ids
        return track

    def bind(self, ref: TensorRef, track: Track) -> None:
        for dim, ids in track.items():
            assert len(ids) == ref.shape[dim], (ref, dim, len(ids))
        self._tracks[ref.index] = track

    def made(self, size: int) -> Ids:
        """Identities for positions of a tensor that takes whatever size the code asks for."""
        return self.ties.fresh(size, made=True)

    def is_made(self, ids: Ids) -> bool:
        return self.ties.is_made(ids)

    def is_fixed(self, ids: Ids) -> bool:
        return bool(self.ties.fixed[ids].all())

    def held(self, ref: TensorRef, dim: int) -> tuple[Ids | None, int]:
        """The identities of a dimension, if any, and its size."""
        return self.track(ref).get(dim), ref.shape[dim]

    def tie(self, one: Ids, other: Ids) -> None:
        known = (id(one), id(other), self._computes_weight)
        if one is not other and known not in self.ties.met:
            self.ties.met[known] = one, other
            plain = one.shape == other.shape and one.ndim == 1
            pair = (one, other) if plain else (np.broadcast_to(one, other.shape).ravel(), other.ravel())
            self.ties.tie(*pair)
            if self._computes_weight:
                self.ties.aliases.append(pair)

    def tie_rows(self, rows: Ids) -> Ids:
        """Tie the same column of every row of a matrix together; returns the first row."""
        if len(rows) > 1:
            self.tie(rows[0], rows[1:])
        first: Ids = rows[0]
        return first

    def freeze(self, ids: Ids | None, reason: str) -> None:
        if ids is not None:
            self.ties.frozen.append((ids, reason))
            self.ties.fixed[ids] = True

    def freeze_all(self, arrays: Iterable[Ids], reason: str) -> None:
        for ids in arrays:
            self.freeze(ids, reason)

    def prune_only(self, ids: Ids | None, reason: str) -> None:
        if ids is not None:
            self.ties.prune_only.append((ids, reason))

    def constant(self, size: int, reason: str) -> Ids:
        """Identities for positions that no edit can change."""
        ids = self.ties.fresh(size)
        self.freeze(ids, reason)
        return ids

    def join(self, arrays: Iterable[tuple[Ids | None, int]], reason: str) -> Ids | None:
        """Tie the channels of operands along one dimension, given as (identities or None, size); sizes of 1 broadcast.

        When one operand's positions are unknown the others' are frozen, since only both could be edited; positions that
        take any size take the unknown ones'.
        """
        present = [(ids, size) for ids, size in arrays if size > 1]
        known = [ids for ids, _ in present if ids is not None]
        if len(known) > 1:
            known.sort(key=self.is_made)  # channels first
        if not known or (len(known) < len(present) and self.is_made(known[0])):
            return None
        for ids in known[1:]:
            self.tie(known[0], ids)
        if len(known) < len(present):
            self.freeze(known[0], reason)
        return known[0]

    def joined(self, refs: Sequence[TensorRef], dims: Iterable[int], op: Op) -> Track:
        """The channels of tensors of one rank, tied along some dimensions."""
        found = {dim: self.join([self.held(ref, dim) for ref in refs], untracked(op)) for dim in dims}
        return {dim: ids for dim, ids in found.items() if ids is not None}

    def contract(self, a: tuple[TensorRef, int], b: tuple[TensorRef, int], op: Op) -> None:
        """Tie the two dimensions that a product sums over; the weight's side becomes the reading side."""
        sides = [self.held(*a), self.held(*b)]
        reason = f"{op.name} in {where(op)} sums over something that is not tracked"
        tied = self.join(sides, reason)
        if tied is None:
            return
        weights = [(ref, ids) for (ref, _), (ids, _) in zip((a, b), sides, strict=True) if self.is_weight(ref)]
        if len(weights) != 1:
            self.prune_only(tied, f"{op.name} in {where(op)} multiplies two feature maps")
            return
        [(ref, ids)] = weights
        if ids is not None:
            self.ties.columns.append(ids)
            if ref.index not in self._plain:
                self.prune_only(tied, f"{where(op)} computes its weight from parameters")

    def is_used(self, ref: TensorRef) -> bool:
        """Whether an operator reads a tensor, or anything beyond the run does."""
        return ref.index in self._used

    def is_weight(self, ref: TensorRef) -> bool:
        """Whether a tensor is a parameter or buffer, or computed from such alone."""
        return bool(self.sources(ref))

    def sources(self, ref: TensorRef) -> tuple[TensorRef, ...]:
        """The parameters and buffers that a tensor is computed from, if from them alone."""
        self.track(ref)
        return self._sources.get(ref.index, ())

    def _count(self, op: Op) -> None:
        for axes in op.operator.macs(op) if op.operator.macs else ():
            factor, arrays = 1, []
            for axis in axes:
                ids, size = (None, axis) if isinstance(axis, int) else self.held(*axis)
                if ids is None:
                    factor *= size
                else:
                    arrays.append(ids)
            self.costs.append(RawCost(op.module, factor, tuple(arrays)))

    def size(self, op: Op, **attributes: Ids | None) -> None:
        self.sizes.extend(RawSize(op.module, name, ids) for name, ids in attributes.items() if ids is not None)

    def _mark_weights(self, op: Op) -> None:
        if op.func.is_view:
            self._base.update((ref.index, self._base.get(op.inputs[0].index, op.inputs[0].index)) for ref in op.outputs)
        if self._computes_weight:
            sources = tuple(dict.fromkeys(source for ref in op.inputs for source in self._sources[ref.index]))
            plain = op.operator.keeps is not None and all(ref.index in self._plain for ref in op.inputs)
            for ref in op.outputs:
                self._sources.setdefault(ref.index, sources)
                if plain:
                    self._plain.add(ref.index)
            return
        for ref in op.outputs:  # features written into a tensor that the code made
            for index in (ref.index, self._base.get(ref.index, ref.index)):
                self._sources.pop(index, None)
        weights = [ref for ref in op.inputs if self._sources.get(ref.index)]
        outputs = op.outputs if weights else ()
        given = {int(ids[0]) for ref in outputs for ids in self._tracks.get(ref.index, {}).values() if len(ids)}
        for ref in weights:
            self.ties.rows.extend(ids for ids in self.track(ref).values() if int(ids[0]) in given)


UNSEEN = "something computes where operators are not seen, as in another thread, and may read it"


def where(op: Op) -> str:
    return op.module or "the model"


def untracked(op: Op) -> str:
    return f"{op.name} in {where(op)} joins it with something that is not tracked"


def without(track: Track, gone: set[int]) -> Track:
    """A track after some dimensions are dropped from the tensor."""
    return {dim - sum(g < dim for g in gone): ids for dim, ids in track.items() if dim not in gone}
