"""Rules for operators that move data: views, permutations, slices, concatenation, padding, resizing."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.graph.channels import Ids
from compressor.graph.trace import Op, TensorRef
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
    w.give(op.outputs[0], _without(w.track(x), gone))


def _without(track: Track, gone: set[int]) -> Track:
    return {dim - sum(g < dim for g in gone): ids for dim, ids in track.items() if dim not in gone}


def select(w: Walk, op: Op) -> None:
    """(x, dim, index): one position of a dimension."""
    x = op.args[0]
    dim = op.args[1] % len(x.shape)
    w.freeze(w.track(x).get(dim), f"{op.module or 'the model'} picks single channels by number")
    w.give(op.outputs[0], _without(w.track(x), {dim}))


def slice_(w: Walk, op: Op) -> None:
    """(x, dim, start, end, step)."""
    x, at, start, end, step = (list(op.args) + [0, None, None, 1][len(op.args) - 1 :])[:5]
    dim = at % len(x.shape)
    track = dict(w.track(x))
    if dim in track:
        if step not in (None, 1):
            _every(w, op, track[dim], start or 0, step)
        whole, track[dim] = track[dim], track[dim][start:end:step]
        if len(track[dim]) < len(whole):
            w.ties.apart.append(track[dim])
    w.give(op.outputs[0], track)


def _every(w: Walk, op: Op, ids: Ids, start: int, step: int) -> None:
    """x[:, start::step] keeps its place as long as whole runs of `step` channels go."""
    if len(ids) % step == 0 and 0 <= start < step:
        w.tie_rows(ids.reshape(-1, step).T)
    else:
        w.freeze(ids, f"{op.module or 'the model'} takes every {step}th channel")


def cat(w: Walk, op: Op) -> None:
    """(tensors, dim)."""
    tensors = [ref for ref in op.args[0] if ref.shape != (0,)]
    out = op.outputs[0]
    at = (op.args[1] if len(op.args) > 1 else 0) % len(out.shape)
    track = _joined(w, op, tensors, at)
    if any(at in w.track(ref) for ref in tensors):
        parts = [_known(w, ref, at, f"{op.module or 'the model'} concatenates it untracked") for ref in tensors]
        track[at] = np.concatenate(parts)
    w.give(out, track)


def _known(w: Walk, ref: TensorRef, dim: int, reason: str) -> Ids:
    ids = w.adopt(ref, dim)
    return w.constant(ref.shape[dim], reason) if ids is None else ids


def _joined(w: Walk, op: Op, tensors: list[TensorRef], skipped: int) -> Track:
    """Tie tensors of one rank along every dimension but one."""
    track: Track = {}
    for dim in range(len(tensors[0].shape)):
        if dim != skipped:
            ids = w.join([w.held(ref, dim) for ref in tensors], _alone(op))
            if ids is not None:
                track[dim] = ids
    return track


def stack(w: Walk, op: Op) -> None:
    """(tensors, dim): a new dimension, so the tensors are tied."""
    at = (op.args[1] if len(op.args) > 1 else 0) % len(op.outputs[0].shape)
    track = _joined(w, op, list(op.args[0]), -1)
    w.give(op.outputs[0], {dim + (dim >= at): ids for dim, ids in track.items()})


def split(w: Walk, op: Op) -> None:
    """split (x, size or sizes, dim), chunk: parts of equal size are tied, since an edit must keep them equal."""
    x = op.args[0]
    dim = (op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)) % len(x.shape)
    ids = w.track(x).get(dim)
    if ids is None:
        for out in op.outputs:
            w.give(out, w.track(x))
        return
    ends = np.cumsum([out.shape[dim] for out in op.outputs])
    parts = np.split(ids, ends[:-1])
    if len({len(part) for part in parts}) == 1:
        w.tie_rows(np.stack(parts))
    else:
        w.ties.apart.extend(parts)
    for out, part in zip(op.outputs, parts, strict=True):
        w.give(out, w.track(x) | {dim: part})


def unbind(w: Walk, op: Op) -> None:
    """(x, dim): every position of a dimension as a tensor of its own."""
    x = op.args[0]
    dim = (op.args[1] if len(op.args) > 1 else 0) % len(x.shape)
    w.freeze(w.track(x).get(dim), f"{op.module or 'the model'} takes channels apart")
    for out in op.outputs:
        w.give(out, _without(w.track(x), {dim}))


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


def pad(w: Walk, op: Op) -> None:
    """constant_pad_nd (x, widths, value): from the last dimension backwards, two widths each."""
    x, widths = op.args[0], op.args[1]
    track = dict(w.track(x))
    for offset in range(len(widths) // 2):
        dim = len(x.shape) - 1 - offset
        before, after = widths[2 * offset], widths[2 * offset + 1]
        if dim in track and (before or after):
            reason = f"{op.module or 'the model'} pads channels by a fixed number"
            if min(before, after) < 0:
                w.freeze(track[dim], reason)
                del track[dim]
            else:
                track[dim] = np.concatenate([w.constant(before, reason), track[dim], w.constant(after, reason)])
    w.give(op.outputs[0], track)


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


def glu(w: Walk, op: Op) -> None:
    """(x, dim): one half times the sigmoid of the other."""
    x = op.args[0]
    dim = (op.args[1] if len(op.args) > 1 else -1) % len(x.shape)
    track = dict(w.track(x))
    if dim in track:
        track[dim] = w.tie_rows(track[dim].reshape(2, -1))
    w.give(op.outputs[0], track)


def picked(w: Walk, op: Op) -> None:
    """topk (x, k, dim), sort, index_select and gather (x, dim, ...): free as long as they do not run over channels."""
    x = op.args[0]
    given = op.args[2:3] if op.name == "topk" else op.args[1:2]
    dim = (given[0] if given and type(given[0]) is int else op.kwargs.get("dim", -1)) % len(x.shape)
    track = dict(w.track(x))
    w.freeze(track.pop(dim, None), f"{op.name} in {op.module or 'the model'} picks channels")
    if op.name == "gather":
        others = {d: w.join((w.held(x, d), w.held(op.args[2], d)), _alone(op)) for d in range(len(x.shape)) if d != dim}
        track = {d: ids for d, ids in others.items() if ids is not None and len(ids) == op.outputs[0].shape[d]}
    for out in op.outputs:
        w.give(out, track)


def _alone(op: Op) -> str:
    return f"{op.name} in {op.module or 'the model'} joins it with something that is not tracked"


def index(w: Walk, op: Op) -> None:
    """x[indices] (x, indices): free along the dimensions that no index touches, where integers lead the indices."""
    x, indices, out = op.args[0], op.args[1], op.outputs[0]
    picked = [dim for dim, entry in enumerate(indices) if entry is not None]
    leading = picked == list(range(len(picked))) and all(indices[dim].dtype == torch.int64 for dim in picked)
    track: Track = {}
    for dim, ids in w.track(x).items():
        if leading and dim >= len(picked):
            track[dim + len(out.shape) - len(x.shape)] = ids
        else:
            w.freeze(ids, f"{op.module or 'the model'} picks channels by number")
    w.give(out, track)


def unfold(w: Walk, op: Op) -> None:
    """Tensor.unfold (x, dim, size, step): windows over one dimension, as a new last one."""
    x, dim = op.args[0], op.args[1] % len(op.args[0].shape)
    track = dict(w.track(x))
    w.freeze(track.pop(dim, None), f"{op.module or 'the model'} takes windows over channels")
    w.give(op.outputs[0], track)


def along(w: Walk, op: Op) -> None:
    """softmax, cumsum, flip, roll, Fourier transforms (x, dim or dims, ...): free unless they run over channels."""
    x, out = op.args[0], op.outputs[0]
    track = dict(w.track(x))
    given: Any = op.args[2] if op.name == "roll" and len(op.args) > 2 else op.args[1]
    for dim in [given] if isinstance(given, int) else given:
        at = dim % len(x.shape)
        w.freeze(track.get(at), f"{op.name} in {op.module or 'the model'} runs over channels")
        if out.shape[at] != x.shape[at]:
            track.pop(at, None)
    w.give(out, track)


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
    "select": select,
    "slice": slice_,
    "cat": cat,
    "stack": stack,
    "split": split,
    "split_with_sizes": split,
    "chunk": split,
    "unsafe_split": split,
    "unsafe_chunk": split,
    "unbind": unbind,
    "as_strided": as_strided,
    "expand": expand,
    "repeat": repeat,
    "constant_pad_nd": pad,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "im2col": im2col,
    "unfold": unfold,
    "index": index,
    "glu": glu,
    **dict.fromkeys(("topk", "sort", "index_select", "gather"), picked),
    "_softmax": along,
    "_log_softmax": along,
    "_safe_softmax": along,
    "softmax": along,
    "cumsum": along,
    "_fft_r2c": along,
    "_fft_c2r": along,
    "_fft_c2c": along,
    "view_as_real": as_real,
    "view_as_complex": as_real,
    "flip": along,
    "roll": along,
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_LIKE, like),
}
