"""Follow the channels of every tensor through a trace: which identities meet, which may not be touched.

Each dimension of each parameter gets a block of fresh identities. For every tensor of the trace we keep, for each
dimension that holds channels, one identity per position; the rules say how an operator moves them and which of them
it ties together. Ties are collected as pairs of arrays and resolved once at the end.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from compressor.graph.channels import Ids, Key
from compressor.graph.trace import Op, TensorRef, Trace

Track = dict[int, Ids]  # dimension -> identities, one per position


@dataclass
class Ties:
    """What the walks found, in raw identities; several walks over the same parameters share one."""

    count: int = 0
    blocks: dict[Key, Ids] = field(default_factory=dict)
    pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)
    prune_only: list[tuple[Ids, str]] = field(default_factory=list)
    columns: list[Ids] = field(default_factory=list)
    apart: list[Ids] = field(default_factory=list)  # channels that go a way of their own, so cannot stand for others

    def fresh(self, size: int) -> Ids:
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids


@dataclass(frozen=True)
class RawCost:
    """Multiply-adds of one operator: `factor` times the number of channels in each axis."""

    module: str
    factor: int
    axes: tuple[Ids, ...]


@dataclass(frozen=True)
class RawSize:
    """An attribute of a module that counts these channels."""

    module: str
    attribute: str
    ids: Ids


Rule = Callable[["Walk", Op], None]


class Walk:
    """The state of one walk: the track of every tensor so far, and what each operator gave."""

    def __init__(self, trace: Trace, ties: Ties) -> None:
        self.trace = trace
        self.ties = ties
        self.costs: list[RawCost] = []
        self.sizes: list[RawSize] = []
        self.op_inputs: list[list[Ids]] = []  # for each operator, all identities that touch it
        self.op_outputs: list[list[Track]] = []  # for each operator, the track of each of its outputs
        self._tracks: dict[int, Track] = {}
        self._uniform: dict[int, frozenset[int]] = {}
        self._weights: dict[int, bool] = dict.fromkeys(trace.parameters, True)  # True: a parameter as it is

    def follow(self, rules: Mapping[str, Rule], elementwise: Rule) -> None:
        """Apply to every operator its rule; one without a rule freezes what touches it."""
        for op in self.trace.ops:
            inputs = op.inputs
            tracks = [self.track(ref) for ref in inputs]
            touched = [ids for track in tracks for ids in track.values()]
            if touched:
                rule = rules.get(op.name) or (elementwise if torch.Tag.pointwise in op.func.tags else None)
                if rule is None:
                    self.freeze_all(touched, f"operator {op.name} in {op.module or 'the model'} has no rule")
                else:
                    rule(self, op)
            else:
                self._pass_uniform(op)
            self._mark_weights(op, inputs)
            self.op_inputs.append(touched)
            self.op_outputs.append([self._tracks.get(ref.index, {}) for ref in op.outputs])
        for ref in self.trace.outputs:
            self.freeze_all(self.track(ref).values(), "output of the model")

    def track(self, ref: TensorRef) -> Track:
        known = self._tracks.get(ref.index)
        if known is None:
            known = self._tracks[ref.index] = self._first_track(ref)
        return known

    def _first_track(self, ref: TensorRef) -> Track:
        name = self.trace.parameters.get(ref.index)
        if name is None:
            return {}
        track: Track = {}
        for dim, size in enumerate(ref.shape):
            if size > 1:
                if (name, dim) not in self.ties.blocks:
                    self.ties.blocks[name, dim] = self.ties.fresh(size)
                track[dim] = self.ties.blocks[name, dim]
        return track

    def give(self, ref: TensorRef, track: Track) -> None:
        for dim, ids in track.items():
            assert len(ids) == ref.shape[dim], (ref, dim, len(ids))
        self._tracks[ref.index] = track
        self._uniform.pop(ref.index, None)

    def uniform(self, ref: TensorRef) -> frozenset[int]:
        """Dimensions along which a tensor holds one value over and over: they take whatever size they are asked for.

        Such is what `expand` repeated and what `zeros` or `ones` made; that the code asks for a size that follows the
        channels is for the trial to find out.
        """
        return self._uniform.get(ref.index, frozenset())

    def mark_uniform(self, ref: TensorRef, dims: Iterable[int]) -> None:
        self._uniform[ref.index] = frozenset(dims)

    def mark_repeated(self, x: TensorRef, out: TensorRef) -> None:
        """Dimensions of size 1, or none at all, became several of the same."""
        new = len(out.shape) - len(x.shape)
        grown = (dim for dim, size in enumerate(out.shape) if size > 1 and (dim < new or x.shape[dim - new] == 1))
        self.mark_uniform(out, grown)

    def _pass_uniform(self, op: Op) -> None:
        """Of an operator that no channels reach."""
        known = [self.uniform(ref) for ref in op.inputs]
        for out in op.outputs:
            if any(ref.index == out.index for ref in op.inputs):  # written in place
                if len(op.inputs) > 1:
                    self._uniform.pop(out.index, None)
            elif op.name in FILLED:
                self.mark_uniform(out, range(len(out.shape)))
            elif op.name in ("expand", "repeat"):
                self.mark_repeated(op.inputs[0], out)
            elif any(known) and (torch.Tag.pointwise in op.func.tags or op.name in ("clone", "_to_copy")):
                self.mark_uniform(out, (d for d in range(len(out.shape)) if self._all_uniform(op, d - len(out.shape))))

    def _all_uniform(self, op: Op, dim: int) -> bool:
        """Whether no operand has a size of its own on a dimension, counted from the last."""
        return all(self.held(ref, dim + len(ref.shape))[1] == 1 for ref in op.inputs if len(ref.shape) >= -dim)

    def held(self, ref: TensorRef, dim: int) -> tuple[Ids | None, int]:
        """The identities of a dimension, if any, and its size; 1 where it broadcasts or takes any size."""
        ids = self.track(ref).get(dim)
        return ids, 1 if ids is None and dim in self.uniform(ref) else ref.shape[dim]

    def adopt(self, ref: TensorRef, dim: int) -> Ids | None:
        """The identities of a dimension; one that takes any size gets some of its own, free to be tied."""
        ids = self.track(ref).get(dim)
        if ids is None and dim in self.uniform(ref):
            ids = self.ties.fresh(ref.shape[dim])
            self._tracks[ref.index] = self.track(ref) | {dim: ids}
        return ids

    def tie(self, one: Ids, other: Ids) -> None:
        if one is not other:
            self.ties.pairs.append((one.ravel(), other.ravel()))

    def tie_rows(self, rows: Ids) -> Ids:
        """Tie the same column of every row of a matrix together; returns the first row."""
        if len(rows) > 1:
            self.tie(np.broadcast_to(rows[0], rows[1:].shape), rows[1:])
        first: Ids = rows[0]
        return first

    def freeze(self, ids: Ids | None, reason: str) -> None:
        if ids is not None:
            self.ties.frozen.append((ids, reason))

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

        When one operand's positions are unknown the others' are frozen, since only both could be edited.
        """
        present = [(ids, size) for ids, size in arrays if size > 1]
        known = [ids for ids, _ in present if ids is not None]
        if not known:
            return None
        for ids in known[1:]:
            self.tie(known[0], ids)
        if len(known) < len(present):
            self.freeze(known[0], reason)
        return known[0]

    def contract(self, a: tuple[TensorRef, int], b: tuple[TensorRef, int], op: Op) -> None:
        """Tie the two dimensions that a product sums over; the weight's side becomes the reading side."""
        left, right = self.track(a[0]).get(a[1]), self.track(b[0]).get(b[1])
        tied = self.join(
            ((left, a[0].shape[a[1]]), (right, b[0].shape[b[1]])),
            f"{op.name} in {op.module or 'the model'} sums over something that is not tracked",
        )
        if tied is None:
            return
        weights = [ids for ids, ref in ((left, a[0]), (right, b[0])) if ref.index in self._weights]
        if len(weights) != 1:
            self.prune_only(tied, f"{op.name} in {op.module or 'the model'} multiplies two feature maps")
        elif weights[0] is not None:
            self.ties.columns.append(weights[0])
            if not self._weights[(a[0] if a[0].index in self._weights else b[0]).index]:
                self.prune_only(tied, f"{op.module or 'the model'} computes its weight from parameters")

    def is_weight(self, ref: TensorRef) -> bool:
        return ref.index in self._weights

    def cost(self, op: Op, factor: int, axes: Iterable[tuple[Ids | None, int]]) -> None:
        arrays = []
        for ids, size in axes:
            if ids is None:
                factor *= size
            else:
                arrays.append(ids)
        self.costs.append(RawCost(op.module, factor, tuple(arrays)))

    def size(self, op: Op, **attributes: Ids | None) -> None:
        self.sizes.extend(RawSize(op.module, name, ids) for name, ids in attributes.items() if ids is not None)

    def _mark_weights(self, op: Op, inputs: tuple[TensorRef, ...]) -> None:
        if all(ref.index in self._weights for ref in inputs):
            plain = op.name in _MOVES and all(self._weights[ref.index] for ref in inputs)
            for ref in op.outputs:
                self._weights.setdefault(ref.index, plain)


FILLED = frozenset({"zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full",
                    "new_empty"})  # fmt: skip
_MOVES = frozenset({"t", "view", "_unsafe_view", "transpose", "permute", "expand", "clone", "detach", "alias",
                    "unsqueeze", "squeeze", "select", "_to_copy"})  # fmt: skip
