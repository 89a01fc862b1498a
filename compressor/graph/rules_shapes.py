"""Rules for operators that keep all channels: views, permutations, repetition, resizing, shuffling."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from compressor.graph.channels import Ids
from compressor.graph.propagate import Propagation, Track, untracked, where, without
from compressor.graph.records import Op, argument


def view(w: Propagation, op: Op) -> None:
    """view, reshape: channels that end up on several dimensions are tied along all of them but one."""
    x, out = op.args[0], op.outputs[0]
    if math.prod(x.shape) != math.prod(out.shape) or 0 in x.shape:  # bits read as another type, or nothing at all
        w.freeze_all(w.track(x).values(), f"{where(op)} reads them as another type")
        return
    given: Track = {}
    for source, target in regrouped(x.shape, out.shape):
        here = {dim: w.track(x)[dim] for dim in source if dim in w.track(x)}
        tracked = sorted(here, key=lambda dim: w.is_made(here[dim]) or w.is_fixed(here[dim]))  # channels first
        others = [here[dim] for dim in tracked[1:]]
        w.freeze_all(others, f"{where(op)} flattens them together with other channels")
        if tracked:
            ids = _spread(w.track(x)[tracked[0]], x.shape, source, tracked[0])
            given |= _rectangular(w, op, ids.reshape([out.shape[dim] for dim in target]), target)
    w.bind(out, given)


def regrouped(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of dimensions of equal size before and after a reshape; dimensions of size 1 are left out."""
    sources = [dim for dim, size in enumerate(before) if size != 1]
    targets = [dim for dim, size in enumerate(after) if size != 1]
    while sources and targets:
        source, target = [sources.pop(0)], [targets.pop(0)]
        while (here := math.prod(before[d] for d in source)) != (there := math.prod(after[d] for d in target)):
            if here < there:
                source.append(sources.pop(0))
            else:
                target.append(targets.pop(0))
        yield source, target


def _spread(ids: Ids, shape: tuple[int, ...], dims: list[int], own: int) -> Ids:
    """The identities of dimension `own` repeated over the other `dims`."""
    aligned = ids.reshape([-1 if dim == own else 1 for dim in dims])
    return np.broadcast_to(aligned, [shape[dim] for dim in dims])


def _rectangular(w: Propagation, op: Op, ids: NDArray[np.int64], dims: list[int]) -> Track:
    """One dimension's identities for an array over several: an edit must leave it a box, so rows are tied.

    Which dimension follows the channels is the code's to say: the one whose size it leaves open, else what a trial has
    shown, else the last of the large ones.
    """
    varying = [axis for axis in range(ids.ndim) if (ids != ids.take([0], axis)).any()]
    kept = varying[-1] if varying else int(np.argmax(ids.shape))  # all tied into one: any dimension holds them
    if len(varying) > 1:
        w.choices[w.number] = tuple(dims[axis] for axis in varying)
        asked = op.args[1] if isinstance(op.args[1], list) else []
        most = max(ids.shape)
        large = min(most, max(5, most / 2))  # heads may be more than the channels of each, which come behind them
        kept = max(varying, key=lambda axis: (dims[axis] == w.axes.get(w.number), -1 in asked[dims[axis] :][:1],
                                              ids.shape[axis] >= large, axis))  # fmt: skip
    rows = np.moveaxis(ids, kept, -1).reshape(-1, ids.shape[kept])
    return {dims[kept]: w.tie_rows(rows) if len(varying) > 1 else rows[0]}


def order_of(op: Op) -> list[int]:
    """Of permute (x, dims), transpose (x, a, b) and t (x): which dimension stands in each place of the result."""
    rank = len(op.args[0].shape)
    dims, pair = argument(op, "dims"), (argument(op, "dim0"), argument(op, "dim1"))
    if dims is not None:
        return [dim % rank for dim in dims]
    order = list(range(rank))
    if rank > 1:
        a, b = (0, 1) if pair == (None, None) else (dim % rank for dim in pair)
        order[a], order[b] = b, a
    return order


def permute(w: Propagation, op: Op) -> None:
    """permute, transpose, t: see `order_of`."""
    track = w.track(op.args[0])
    w.bind(op.outputs[0], {new: track[old] for new, old in enumerate(order_of(op)) if old in track})


def unsqueeze(w: Propagation, op: Op) -> None:
    """(x, dim): a new dimension of size 1."""
    at = op.args[1] % len(op.outputs[0].shape)
    w.bind(op.outputs[0], {dim + (dim >= at): ids for dim, ids in w.track(op.args[0]).items()})


def squeeze(w: Propagation, op: Op) -> None:
    """(x), (x, dim), (x, dims): drops dimensions of size 1."""
    x = op.args[0]
    asked = op.args[1] if len(op.args) > 1 else range(len(x.shape))
    dims = {dim % len(x.shape) for dim in ([asked] if isinstance(asked, int) else asked)}
    gone = {dim for dim in dims if x.shape[dim] == 1}
    w.bind(op.outputs[0], without(w.track(x), gone))


def expand(w: Propagation, op: Op) -> None:
    """expand (x, sizes), repeat (x, times): dimensions of size 1 and new ones in front take whatever size is asked."""
    x, out = op.args[0], op.outputs[0]
    shift = len(out.shape) - len(x.shape)
    track: Track = {}
    for dim, size in enumerate(out.shape):
        ids = w.track(x).get(dim - shift)
        if ids is not None:
            track[dim] = np.tile(ids, size // len(ids))
        elif size > 1 and (dim < shift or x.shape[dim - shift] == 1):
            track[dim] = w.made(size)
    w.bind(out, track)


def made(w: Propagation, op: Op) -> None:
    """zeros, full, rand, new_ones, empty_like ...: one value, or random ones, of whatever size the code asks for."""
    for out in op.outputs:
        like = w.track(op.inputs[0]) if op.inputs and op.inputs[0].shape == out.shape else {}
        track = {dim: like.get(dim) if "like" in op.name.split("_") else None for dim in range(len(out.shape))}
        w.bind(
            out,
            {dim: w.made(out.shape[dim]) if ids is None else ids for dim, ids in track.items() if out.shape[dim] > 1},
        )


def positions(w: Propagation, op: Op) -> None:
    """arange, linspace: of any size, but no channel's value stays its own when others go."""
    out = op.outputs[0]
    if out.shape[0] > 1:
        ids = w.made(out.shape[0])
        w.freeze(ids, f"{op.name} in {where(op)} numbers them")
        w.bind(out, {0: ids})


def eye(w: Propagation, op: Op) -> None:
    """(n, m): of any size; some rows and the same columns of it are one again."""
    n, m = op.outputs[0].shape
    if n > 1 and m > 1:
        rows = w.made(n)
        w.prune_only(rows, f"{op.name} in {where(op)} makes a matrix of them")
        w.bind(op.outputs[0], {0: rows, 1: rows if n == m else w.made(m)})


def triangle(w: Propagation, op: Op) -> None:
    """tril, triu (x, diagonal): some rows and the same columns of a square one are one again."""
    x, rank = op.args[0], len(op.args[0].shape)
    square = {dim: w.track(x)[dim] for dim in (rank - 2, rank - 1) if dim in w.track(x)}
    for ids in square.values():
        w.prune_only(ids, f"{op.name} in {where(op)} makes a matrix of them")
    if square and x.shape[-1] == x.shape[-2]:
        w.join([w.held(x, rank - 2), w.held(x, rank - 1)], untracked(op))
    else:
        w.freeze_all(square.values(), f"{op.name} in {where(op)} runs over channels")
    w.bind(op.outputs[0], w.track(x))


def spatial(w: Propagation, op: Op, dims: int) -> None:
    """Pooling, resizing, padding by reflection: the last `dims` dimensions change, channels pass."""
    x, beside = op.args[0], len(op.args[0].shape) - dims
    aligned = [ref for ref in op.inputs if ref.shape[:beside] == x.shape[:beside]]  # indices, numbers by chance
    for ref in op.inputs:
        inside = (ids for dim, ids in w.track(ref).items() if dim >= beside or ref not in aligned)
        w.freeze_all(inside, f"{op.name} in {where(op)} runs over channels")
    joined = w.joined(aligned, range(beside), op)
    for out in op.outputs:
        w.bind(out, joined)


def grid_sampler(w: Propagation, op: Op) -> None:
    """(x, grid, ...): every channel is read at the same points."""
    x, grid = op.args[0], op.args[1]
    w.freeze_all(w.track(grid).values(), f"{where(op)} reads points from them")
    w.freeze_all((ids for dim, ids in w.track(x).items() if dim != 1), f"{op.name} in {where(op)} runs over channels")
    w.bind(op.outputs[0], {dim: ids for dim, ids in w.track(x).items() if dim == 1})


def like(w: Propagation, op: Op) -> None:
    """Dropout, clone, detach, in-place filling: something of the same shape."""
    for out in op.outputs:
        w.bind(out, w.track(op.args[0]) if out.shape == op.args[0].shape else {})


def pixel_shuffle(w: Propagation, op: Op) -> None:
    """(x, r): r * r channels become one."""
    r = op.args[1]
    _exchange(w, op, 2, lambda ids: w.tie_rows(ids.reshape(-1, r * r).T))


def pixel_unshuffle(w: Propagation, op: Op) -> None:
    """(x, r): every channel becomes r * r."""
    _exchange(w, op, 2, lambda ids: ids.repeat(op.args[1] ** 2))


def channel_shuffle(w: Propagation, op: Op) -> None:
    """(x, groups)."""
    groups = op.args[1]
    _exchange(w, op, len(op.args[0].shape) - 2, lambda ids: w.tie_rows(ids.reshape(groups, -1)).repeat(groups))


def im2col(w: Propagation, op: Op) -> None:
    """(x, kernel, ...): every channel becomes its kernel's positions."""
    _exchange(w, op, 2, lambda ids: ids.repeat(math.prod(op.args[1])))


def col2im(w: Propagation, op: Op) -> None:
    """(x, size, kernel, ...): the positions of a kernel become one channel again."""
    _exchange(w, op, 1, lambda ids: w.tie_rows(ids.reshape(-1, math.prod(op.args[2])).T))


def _exchange(w: Propagation, op: Op, behind: int, change: Callable[[Ids], Ids]) -> None:
    """Change the dimension in front of the last `behind` ones; what is held there is frozen."""
    x = op.args[0]
    at = len(x.shape) - 1 - behind
    track = {dim: change(ids) if dim == at else ids for dim, ids in w.track(x).items() if dim <= at}
    w.freeze_all((ids for dim, ids in w.track(x).items() if dim > at), f"{op.name} in {where(op)} runs over channels")
    w.bind(op.outputs[0], track)


def as_real(w: Propagation, op: Op) -> None:
    """view_as_real adds a last dimension of two parts, view_as_complex takes it away."""
    rank = len(op.outputs[0].shape)
    track = dict(w.track(op.args[0]))
    w.freeze(track.pop(rank, None), "real and imaginary part")
    w.bind(op.outputs[0], track)


def as_strided(w: Propagation, op: Op) -> None:
    """(x, size, stride, ...): free along the first dimensions, of which every window sees one position."""
    x, size, stride = op.args[:3]
    sizes = list(zip(size, stride, strict=True))
    lead = 0
    while lead < min(len(x.shape), len(size)) and sizes[lead] == (x.shape[lead], math.prod(x.shape[lead + 1 :])):
        lead += 1
    reach = sum((number - 1) * step for number, step in sizes[lead:])
    while lead and reach >= sizes[lead - 1][1]:
        lead -= 1
        reach += (sizes[lead][0] - 1) * sizes[lead][1]
    others = (ids for dim, ids in w.track(x).items() if dim >= lead)
    w.freeze_all(others, f"{where(op)} reads memory by strides")
    w.bind(op.outputs[0], {dim: ids for dim, ids in w.track(x).items() if dim < lead})
