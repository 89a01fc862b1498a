"""Try an edit on shapes alone: halve every free group of a copy, or let it grow, run it, and see where its operators
give other shapes than the map predicts.

A size written into the user's code (`x.view(b, 24, 784)`, a stored `groups`) shows as an operator that fails or
whose output has another shape than the map predicts. If an integer attribute of the running module holds that size,
the edit is told to keep it true; otherwise the channels that meet at that operator are frozen.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.errors import cause
from compressor.graph.attributes import put_, write_
from compressor.graph.channels import Counts, Group, Ids, Key, Size
from compressor.graph.objections import bounds
from compressor.graph.propagate import Propagation, Track, where
from compressor.graph.records import Found, TensorRef, argument, dimension
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Op, Ran, Way, outline
from compressor.graph.unions import Unions

Copies = NDArray[np.int64]  # of every identity in a trial: 0 where it is removed, 2 where it stands twice


@dataclass(frozen=True)
class Mismatch:
    """The operator at which an edited model no longer does what the map predicts."""

    walk: Propagation
    op: int
    reason: str
    copies: Copies  # in the trial
    asked: tuple[tuple[int, int, int], ...] = ()  # (output, dimension, size) that the code wants instead

    def wanted(self) -> Iterator[tuple[Ids, int, int]]:
        """Channels of which the code wants another number than the map has, with that number and the one at first."""
        for output, dim, size in self.asked:
            ids = self.walk.op_outputs[self.op][output].get(dim)
            if ids is not None and not self.walk.is_made(ids):
                yield ids, size, len(ids)


def half(groups: tuple[Group, ...], count: int, least: Mapping[str, int] | None = None) -> Copies:
    """The first trial: about half of every free group stays, of a different number in each.

    `least` says of how many groups more than one channel stays.
    """
    copies = np.ones(count, dtype=np.int64)
    generator = np.random.default_rng(0)
    for turn, group in enumerate(groups):
        if group.frozen is None:
            stay = 1 if least is None else least.get(group.name, 1)
            leave = min(group.size - stay, max(1, group.size // 2 + turn % 3 - 1))
            copies[generator.choice(group.ids, leave, replace=False)] = 0
    return copies


def uneven(groups: tuple[Group, ...], count: int, seed: int = 1) -> Copies:
    """The second: of some groups all stay, of others few, so that no two agree by chance."""
    copies = np.ones(count, dtype=np.int64)
    generator = np.random.default_rng(seed)
    for group in groups:
        if group.frozen is None:
            leave = int(generator.integers(0, max(2, group.size * 3 // 4)))
            copies[generator.choice(group.ids, leave, replace=False)] = 0
    return copies


def grown(groups: tuple[Group, ...], count: int) -> Copies:
    """The third: a newcomer in every group that may grow, and in every other one of them a second."""
    copies = np.ones(count, dtype=np.int64)
    for turn, group in enumerate(group for group in groups if group.frozen is None and group.prune_only is None):
        copies[group.ids[: 1 + turn % 2]] = 2
    return copies


@contextmanager
def edited(replica: Replica, identities: Mapping[Key, Ids], sizes: Iterable[Size], copies: Copies) -> Iterator[Replica]:
    """The replica with so many of every channel, its data meaningless; as it was afterwards."""
    counted = Counts(copies)
    changes: dict[str, dict[int, Ids]] = {}
    for (name, dim), ids in identities.items():
        if counted.of(ids) != len(ids):  # a trial removes or adds, never both
            changes.setdefault(name, {})[dim] = ids
    whole = {name: replica.tensors[name].data for name in changes}
    blanks: dict[Any, Tensor] = {}
    for name, dims in changes.items():
        tensor = replica.tensors[name]
        if id(tensor) in replica.values.held:
            replica.values.edited[id(tensor)] = partial(_taken, dims=dims, copies=copies)
        tensor.data = _blank(tensor, dims, counted, blanks) if tensor.is_meta else _taken(tensor.data, dims, copies)
    counts = [(replica.modules[size.module], size.attribute, counted.of(size.ids), len(size.ids)) for size in sizes]
    changed = [(module, path, now) for module, path, now, before in counts if now != before]
    heads = dict.fromkeys((module, path.partition(".")[0]) for module, path, _ in changed)
    kept = [(module, head, getattr(module, head)) for module, head in heads]
    write_(changed)
    try:
        yield replica
    finally:
        replica.values.edited.clear()
        for name, data in whole.items():
            replica.tensors[name].data = data
        for module, attribute, value in kept:
            put_(module, attribute, value)


def _blank(tensor: Tensor, dims: Mapping[int, Ids], counted: Counts, known: dict[Any, Tensor]) -> Tensor:
    """The same without data; tensors of one shape share theirs."""
    shape = [*tensor.shape]
    for dim, ids in dims.items():
        shape[dim] = counted.of(ids)
    key = (*shape, tensor.dtype)
    if key not in known:
        known[key] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return known[key]


def _taken(data: Tensor, dims: Mapping[int, Ids], copies: Copies) -> Tensor:
    """The data with so many of every position of some dimensions."""
    for dim, ids in dims.items():
        positions = torch.from_numpy(np.repeat(np.arange(len(ids)), copies[ids]))
        data = data.index_select(dim, positions.to(data.device))
    return data


def mismatch(
    replica: Replica, way: Way, walk: Propagation, copies: Copies, roots: Ids, ties: Unions
) -> Mismatch | None:
    """Run an edited copy and compare it, operator by operator, with what the map predicts; None when all agree.

    Copies are left out of the comparison: whether a reshape copies depends on sizes.
    """
    left = _Left(copies, roots, ties)
    run = outline(replica, replace(way, found=_found(walk, left)))
    error = run.error
    ours = [number for number, op in enumerate(walk.trace.ops) if not op.operator.incidental]
    theirs = [op for op in run.ops if not op.operator.incidental]
    for number, after in zip(ours, theirs, strict=False):
        why = _difference(walk, number, after, left)
        if why is not None:
            if error is not None and after is theirs[-1] and not after.shapes:
                why = _failure(walk.trace.ops[number], after, error)
            asked = tuple(each for each in _asked(walk, number, after) if not left.agrees(walk, number, *each))
            return Mismatch(walk, number, f"{_place(walk, number)} {why}", copies, asked)
    if error is None and len(theirs) == len(ours) and run.gave == walk.trace.gave:
        return None
    number = ours[min(len(theirs), len(ours) - 1)]
    why = f"does not run with other numbers of channels ({cause(error)})" if error is not None else _OTHERS
    if error is None and len(theirs) == len(ours):
        why = "comes before results of other shapes, by operators that are not seen"
    return Mismatch(walk, number, f"{_place(walk, number)} {why}", copies)


def _place(walk: Propagation, number: int) -> str:
    op = walk.trace.ops[number]
    return f"{op.name} in {where(op)}"


def _found(walk: Propagation, left: "_Left") -> tuple[tuple[str, Found], ...]:
    """What operators found on data in features of which no channel is gone, such as which boxes remain.

    The trial takes it as it is: its own weights mean nothing. What does not come from the input may be a size.
    """
    if not walk.trace.found:
        return ()
    features = {ref.index for ref in walk.trace.inputs}
    told = []
    for op, touched, found in zip(walk.trace.ops, walk.op_inputs, walk.trace.found, strict=True):
        seen = bool(touched) or any(ref.index in features for ref in op.inputs)
        if seen:
            features.update(ref.index for ref in op.outputs)
        if not op.operator.incidental:
            told.append((op.name, found if seen and all(left.of(ids) == len(ids) for ids in touched) else ()))
    return tuple(told)


_WRITTEN = "has a size written into the code"
_ELSEWHERE = "takes a size from something else"
_OTHERS = "is another operator once channels are removed"


def _failure(before: Op, after: Ran, error: Exception) -> str:
    """Why an operator ended a run: the same sizes are asked for as before, or torch says it."""
    return _WRITTEN if _same_sizes(before, after) else f"does not run with other numbers of channels ({cause(error)})"


def _same_sizes(before: Op, after: Ran) -> bool:
    """Whether an operator that takes sizes was given the same ones."""
    return (before.operator.sized or before.operator.kind == "reshape") and all(
        now in (None, tuple(was) if isinstance(was, list) else was)
        for was, now in zip(before.args, after.args, strict=False)
    )


def _asked(walk: Propagation, number: int, after: Ran) -> Iterator[tuple[int, int, int]]:
    """The sizes of an operator's outputs in a trial; of one that failed, those that it was asked for."""
    op = walk.trace.ops[number]
    if after.shapes:
        for output, (ref, shape) in enumerate(zip(op.outputs, after.shapes, strict=False)):
            if len(ref.shape) == len(shape):
                yield from ((output, dim, size) for dim, size in enumerate(shape))
    elif op.operator.kind == "reshape":
        yield from ((0, dim, size) for dim, size in enumerate(_list(after)) if dim < len(op.outputs[0].shape))
    elif argument(op, "split_sizes") is not None:
        dim = dimension(op, op.args[0])
        yield from ((output, dim, size) for output, size in enumerate(_list(after)) if output < len(op.outputs))


def _list(after: Ran) -> tuple[int, ...]:
    return after.args[1] if len(after.args) > 1 and isinstance(after.args[1], tuple) else ()


class _Left(Counts):
    """How many of an array's channels, and which positions, there are in a trial."""

    def __init__(self, copies: Copies, roots: Ids, ties: Unions) -> None:
        super().__init__(copies[roots])
        self._ties = ties
        self._marked: Ids | None = None

    def loose(self, ids: Ids | None) -> bool:
        """Whether these are positions of a tensor of any size, which nothing that depends on their number has read."""
        if ids is None or not self._ties.made[ids].all():
            return False
        if self._marked is None:
            marks = [mark for mark, _ in (*self._ties.frozen, *self._ties.prune_only)]
            self._marked = np.unique(np.concatenate([mark.ravel() for mark in marks])) if marks else ids[:0]
        return not np.isin(ids, self._marked).any()

    def agrees(self, walk: Propagation, number: int, output: int, dim: int, size: int) -> bool:
        """Whether a size of an operator's output is as predicted."""
        ref, ids = walk.trace.ops[number].outputs[output], walk.op_outputs[number][output].get(dim)
        return size == (ref.shape[dim] if ids is None else self.of(ids)) or self.loose(ids)

    def shape(self, ref: TensorRef, track: Track) -> tuple[int, ...]:
        """Of a tensor, as predicted."""
        shape = [*ref.shape]
        for dim, ids in track.items():
            shape[dim] = self.of(ids)
        return tuple(shape)

    def before(self, ids: Ids) -> list[int]:
        """For every bound between positions, how many are in front of it."""
        return [0, *np.cumsum(self.times[ids]).tolist()]


def _difference(walk: Propagation, number: int, after: Ran, left: _Left) -> str | None:
    """In what an operator of an edited run is not what the map predicts."""
    before = walk.trace.ops[number]
    if before.name != after.name and before.name.removeprefix("_unsafe_") != after.name.removeprefix("_unsafe_"):
        return _OTHERS
    if len(before.outputs) != len(after.shapes):
        return _WRITTEN
    for output, (ref, found) in enumerate(zip(before.outputs, after.shapes, strict=True)):
        if len(ref.shape) != len(found):
            return _WRITTEN
        if left.shape(ref, walk.op_outputs[number][output]) == found:
            continue
        for dim, size in enumerate(found):
            if not left.agrees(walk, number, output, dim, size):
                return _WRITTEN if size == ref.shape[dim] or _same_sizes(before, after) else _ELSEWHERE
    if before.operator.kind == "slice" and argument(before, "step") == 1 and _moved(before, after, walk, left):
        return _WRITTEN
    if torch.Tag.pointwise in before.func.tags and _numbers(before.args) != _numbers(after.args):
        return "computes with the number of channels"
    return None


def _numbers(args: Iterable[Any]) -> list[int | float]:
    return [value for value in args if type(value) in (int, float)]


def _moved(before: Op, after: Ran, walk: Propagation, left: _Left) -> bool:
    """Whether a slice takes other channels than it took: right in size but shifted."""
    dim = before.args[1] if len(before.args) > 1 else 0
    ids = walk.track(before.args[0]).get(dim % len(before.args[0].shape))
    if ids is None:
        return False
    position = left.before(ids)
    return [position[bound] for bound in bounds(before, len(ids))] != bounds(after, position[-1])
