"""Rules for operators that keep all channels: views, permutations, repetition, resizing, shuffling."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from compressor.graph.channels import Ids
from compressor.graph.trace import Op
from compressor.graph.walk import FILLED, Rule, Track, Walk


def view(w: Walk, op: Op) -> None:
    """view, reshape: channels that end up on several dimensions are tied along all of them but one."""
    x, out = op.args[0], op.outputs[0]
    given: Track = {}
    for source, target in _regrouped(x.shape, out.shape):
        tracked = [dim for dim in source if dim in w.track(x)]
        reason = f"{op.module or 'the model'} flattens them together with other channels"
        w.freeze_all((w.track(x)[dim] for dim in tracked[1:]), reason)
        if tracked:
            ids = _spread(w.track(x)[tracked[0]], x.shape, source, tracked[0])
            given |= _rectangular(w, ids.reshape([out.shape[dim] for dim in target]), target)
    w.give(out, given)


def _regrouped(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
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


def _rectangular(w: Walk, ids: NDArray[np.int64], dims: list[int]) -> Track:
    """One dimension's identities for an array over several: an edit must leave it a box, so rows are tied."""
    varying = [axis for axis in range(ids.ndim) if (ids != ids.take([0], axis)).any()]
    if not varying:
        return {}
    kept = varying[-1]
    rows = np.moveaxis(ids, kept, -1).reshape(-1, ids.shape[kept])
    return {dims[kept]: w.tie_rows(rows) if len(varying) > 1 else rows[0]}


def permute(w: Walk, op: Op) -> None:
    """permute (x, dims), transpose (x, a, b), t (x)."""
    x = op.args[0]
    rank = len(x.shape)
    order = list(range(rank))
    if op.name == "permute":
        order = [dim % rank for dim in op.args[1]]
    elif rank > 1:
        a, b = (dim % rank for dim in (op.args[1:3] if op.name == "transpose" else (0, 1)))
        order[a], order[b] = b, a
    w.give(op.outputs[0], {new: w.track(x)[old] for new, old in enumerate(order) if old in w.track(x)})


def unsqueeze(w: Walk, op: Op) -> None:
    """(x, dim): a new dimension of size 1."""
    at = op.args[1] % len(op.outputs[0].shape)
    w.give(op.outputs[0], {dim + (dim >= at): ids for dim, ids in w.track(op.args[0]).items()})


def squeeze(w: Walk, op: Op) -> None:
    """(x), (x, dim), (x, dims): drops dimensions of size 1."""
    x = op.args[0]
    asked = op.args[1] if len(op.args) > 1 else range(len(x.shape))
    dims = {dim % len(x.shape) for dim in ([asked] if isinstance(asked, int) else asked)}
    gone = {dim for dim in dims if x.shape[dim] == 1}
    w.give(op.outputs[0], without(w.track(x), gone))


def without(track: Track, gone: set[int]) -> Track:
    return {dim - sum(g < dim for g in gone): ids for dim, ids in track.items() if dim not in gone}


def expand(w: Walk, op: Op) -> None:
    """(x, sizes): dimensions of size 1 grow, new ones come first."""
    x, out = op.args[0], op.outputs[0]
    shift = len(out.shape) - len(x.shape)
    w.give(out, {dim + shift: ids for dim, ids in w.track(x).items()})
    w.mark_repeated(x, out)


def repeat(w: Walk, op: Op) -> None:
    """(x, times): tiles."""
    x, times = op.args[0], op.args[1]
    shift = len(times) - len(x.shape)
    w.give(op.outputs[0], {dim + shift: np.tile(ids, times[dim + shift]) for dim, ids in w.track(x).items()})
    w.mark_repeated(x, op.outputs[0])


def spatial(w: Walk, op: Op) -> None:
    """Pooling, resizing, padding by reflection: the last dimensions change, channels pass."""
    x, out = op.args[0], op.outputs[0]
    kept: Track = {}
    for dim, ids in w.track(x).items():
        if len(x.shape) == len(out.shape) and dim < 2 and out.shape[dim] == len(ids):
            kept[dim] = ids
        else:
            w.freeze(ids, f"{op.name} in {op.module or 'the model'} runs over channels")
    for ref in op.outputs:
        w.give(ref, kept)


def like(w: Walk, op: Op) -> None:
    """zeros_like, rand_like, dropout, clone, detach: something of the same shape."""
    for out in op.outputs:
        w.give(out, w.track(op.args[0]) if out.shape == op.args[0].shape else {})
        if op.name in FILLED and out.shape != op.args[0].shape:
            w.mark_uniform(out, range(len(out.shape)))


def pixel_shuffle(w: Walk, op: Op) -> None:
    """(x, r): r * r channels become one."""
    x, r = op.args
    ids = w.track(x).get(1)
    if ids is not None:
        w.give(op.outputs[0], {1: w.tie_rows(ids.reshape(-1, r * r).T)})


def pixel_unshuffle(w: Walk, op: Op) -> None:
    """(x, r): every channel becomes r * r."""
    x, r = op.args
    ids = w.track(x).get(1)
    w.give(op.outputs[0], {} if ids is None else {1: ids.repeat(r * r)})


def channel_shuffle(w: Walk, op: Op) -> None:
    """(x, groups)."""
    x, groups = op.args
    ids = w.track(x).get(1)
    if ids is not None:
        w.give(op.outputs[0], {1: w.tie_rows(ids.reshape(groups, -1)).repeat(groups)})


def im2col(w: Walk, op: Op) -> None:
    """(x, kernel, ...): every channel becomes its kernel's positions."""
    x, kernel = op.args[0], op.args[1]
    ids = w.track(x).get(1)
    w.give(op.outputs[0], {} if ids is None else {1: ids.repeat(math.prod(kernel))})


def as_real(w: Walk, op: Op) -> None:
    """view_as_real adds a last dimension of two parts, view_as_complex takes it away."""
    rank = len(op.outputs[0].shape)
    track = dict(w.track(op.args[0]))
    w.freeze(track.pop(rank, None), "real and imaginary part")
    w.give(op.outputs[0], track)


def as_strided(w: Walk, op: Op) -> None:
    """(x, size, stride, ...): free as long as it only restates the layout."""
    x, out = op.args[0], op.outputs[0]
    if out.shape == x.shape:
        w.give(out, w.track(x))
    else:
        w.freeze_all(w.track(x).values(), f"{op.module or 'the model'} reads memory by strides")


def _words(text: str) -> list[str]:
    return text.split()


_SPATIAL = _words("""
    avg_pool1d avg_pool2d avg_pool3d max_pool2d max_pool2d_with_indices max_pool3d_with_indices
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d
    adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
    upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    grid_sampler_2d fractional_max_pool2d max_pool2d_with_indices mkldnn_max_pool2d lp_pool2d
""")
_LIKE = _words("""
    clone detach alias contiguous _to_copy to zeros_like ones_like empty_like full_like rand_like randn_like
    new_zeros new_ones new_empty new_full native_dropout dropout feature_dropout bernoulli lift_fresh
    _conj fill zero uniform normal
""")
SHAPES: dict[str, Rule] = {
    "view": view,
    "_unsafe_view": view,
    "reshape": view,
    "flatten": view,
    "unflatten": view,
    "_reshape_alias": view,
    "permute": permute,
    "transpose": permute,
    "t": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "as_strided": as_strided,
    "expand": expand,
    "repeat": repeat,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "im2col": im2col,
    "view_as_real": as_real,
    "view_as_complex": as_real,
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_LIKE, like),
}
