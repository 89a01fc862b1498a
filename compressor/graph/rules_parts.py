"""Rules for operators that take channels apart, pick among them or join them: slices, concatenation, indices."""

from typing import Any

import numpy as np
import torch

from compressor.graph.channels import Ids
from compressor.graph.rules_shapes import without
from compressor.graph.trace import Op, TensorRef
from compressor.graph.walk import Rule, Track, Walk


def select(w: Walk, op: Op) -> None:
    """(x, dim, index): one position of a dimension."""
    x = op.args[0]
    dim = op.args[1] % len(x.shape)
    w.freeze(w.track(x).get(dim), f"{op.module or 'the model'} picks single channels by number")
    w.give(op.outputs[0], without(w.track(x), {dim}))


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
        w.give(out, without(w.track(x), {dim}))


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


PARTS: dict[str, Rule] = {
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
    "constant_pad_nd": pad,
    "pad": pad,
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
    "flip": along,
    "roll": along,
}
