"""An operator without a rule, tried on data: does it treat the positions of a dimension one by one?

Where it gives for some of the positions what it gave for all of them, at these positions, they are channels that pass;
otherwise whatever channels touch it are frozen.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from compressor.files.limits import within_memory
from compressor.graph.propagate import Propagation, Track, where
from compressor.graph.records import Op, TensorRef

_LARGEST = 2**24  # elements of all operands and results together: more are not tried
Place = tuple[int, int]  # of an operand: its number and a dimension


def by_trial(w: Propagation, op: Op) -> None:
    """Tie and hand on the channels of an operator of which nothing is known but what it does."""
    if not op.outputs:
        return
    refs = tuple(dict.fromkeys(op.inputs))
    call = _Call.of(op, refs)
    tracks: list[Track] = [{} for _ in op.outputs]
    left = [(number, dim) for number, ref in enumerate(refs) for dim in w.track(ref)]
    while left:
        place = left[0]
        alike = [other for other in left if _size(refs, other) == _size(refs, place)]
        together, ends = next(_passing(call, refs, alike), ((place,), None))
        if ends is None:
            w.freeze(_ids(w, refs, place), f"operator {op.name} in {where(op)} has no rule")
        else:
            ids = w.join([w.held(refs[number], dim) for number, dim in together], reason="")
            for track, end in zip(tracks, ends, strict=True):
                track |= {} if ids is None else {end: ids}
        left = [other for other in left if other not in together]
    for out, track in zip(op.outputs, tracks, strict=True):
        w.bind(out, track)


def _ids(w: Propagation, refs: Sequence[TensorRef], place: Place) -> Any:
    return w.track(refs[place[0]])[place[1]]


def _size(refs: Sequence[TensorRef], place: Place) -> int:
    return refs[place[0]].shape[place[1]]


@dataclass(frozen=True)
class _Call:
    """An operator and its arguments, in which the number of an operand stands for it."""

    text: str  # by which calls are told apart
    op: Op = field(compare=False)
    refs: tuple[TensorRef, ...] = field(compare=False)

    @staticmethod
    def of(op: Op, refs: tuple[TensorRef, ...]) -> "_Call":
        numbers = {ref: number for number, ref in enumerate(refs)}
        args = tree_map(
            lambda leaf: (numbers[leaf], leaf.shape, leaf.dtype) if isinstance(leaf, TensorRef) else leaf,
            (op.args, op.kwargs),
        )
        return _Call(f"{op.func} {args}", op, refs)

    def __call__(self, operands: Sequence[Tensor]) -> list[Tensor]:
        given = dict(zip(self.refs, operands, strict=True))
        args, kwargs = tree_map(
            lambda leaf: given[leaf].clone() if isinstance(leaf, TensorRef) else leaf, (self.op.args, self.op.kwargs)
        )
        return [leaf for leaf in tree_leaves(self.op.func(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _passing(
    call: _Call, refs: Sequence[TensorRef], places: list[Place]
) -> Iterator[tuple[tuple[Place, ...], tuple[int, ...]]]:
    """Dimensions of one size that pass together, the first of `places` among them; and where in each output."""
    number, dim = places[0]
    from_last = dim - len(refs[number].shape)
    aligned = tuple(place for place in places if place[1] - len(refs[place[0]].shape) == from_last)
    for together in dict.fromkeys((tuple(places), aligned, tuple(p for p in places if p[1] == dim), (places[0],))):
        ends = _ends(call, together)
        if ends is not None:
            yield together, ends


@lru_cache(maxsize=4096)
def _ends(call: _Call, places: tuple[Place, ...]) -> tuple[int, ...] | None:
    """On which dimension of each output the positions of some dimensions come out, if each does on its own."""
    if sum(math.prod(ref.shape) for ref in (*call.refs, *call.op.outputs)) > _LARGEST:
        return None
    size = _size(call.refs, places[0])
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), within_memory():
            torch.manual_seed(0)
            operands = [_sample(ref) for ref in call.refs]
            whole = call(operands)
            if [out.shape for out in whole] != [torch.Size(ref.shape) for ref in call.op.outputs]:
                return None
            found = {_compared(call, operands, whole, places, kept) for kept in _subsets(size)}
    except Exception:  # any operator may refuse these operands, in any way
        return None
    return found.pop() if len(found) == 1 else None


def _subsets(size: int) -> tuple[Tensor, Tensor]:
    return torch.arange(1, size, 2, device="cpu"), torch.arange(0, size, 3, device="cpu")


def _sample(ref: TensorRef) -> Tensor:
    if ref.dtype.is_floating_point or ref.dtype.is_complex:
        return torch.rand(ref.shape, dtype=ref.dtype, device="cpu") * 0.8 + 0.1
    return torch.randint(2, ref.shape, dtype=ref.dtype, device="cpu")  # as indices these are valid


def _compared(
    call: _Call, operands: list[Tensor], whole: list[Tensor], places: tuple[Place, ...], kept: Tensor
) -> tuple[int, ...] | None:
    some = list(operands)
    for number, dim in places:
        some[number] = some[number].index_select(dim, kept)
    ends = []
    for before, after in zip(whole, call(some), strict=True):
        changed = [dim for dim, sizes in enumerate(zip(before.shape, after.shape, strict=True)) if sizes[0] != sizes[1]]
        if len(changed) != 1 or not _equal(before.index_select(changed[0], kept), after):
            return None
        ends.append(changed[0])
    return tuple(ends)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
