"""Rules for operators that take channels apart, pick among them or join them: slices, concatenation, indices."""

import numpy as np
import torch

from compressor.graph.channels import Ids
from compressor.graph.propagate import Propagation, Track, untracked, where, without
from compressor.graph.records import Op, TensorRef, argument, dimension


def select(w: Propagation, op: Op) -> None:
    """(x, dim, index): one position of a dimension."""
    x = op.args[0]
    dim = dimension(op, x)
    w.freeze(w.track(x).get(dim), f"{where(op)} picks single channels by number")
    w.bind(op.outputs[0], without(w.track(x), {dim}))


def slice_(w: Propagation, op: Op) -> None:
    """(x, dim, start, end, step)."""
    x, dim = op.args[0], dimension(op, op.args[0])
    start, end, step = (argument(op, name) for name in ("start", "end", "step"))
    track = dict(w.track(x))
    if dim in track:
        if step != 1:
            _every(w, op, track[dim], start or 0, step)
        whole, track[dim] = track[dim], track[dim][start:end:step]
        if len(track[dim]) < len(whole):
            w.ties.apart.append(track[dim])
    w.bind(op.outputs[0], track)


def _every(w: Propagation, op: Op, ids: Ids, start: int, step: int) -> None:
    """x[:, start::step] keeps its place as long as whole runs of `step` channels go."""
    if len(ids) % step == 0 and 0 <= start < step:
        w.tie_rows(ids.reshape(-1, step).T)
    else:
        w.freeze(ids, f"{where(op)} takes every {step}th channel")


def cat(w: Propagation, op: Op) -> None:
    """(tensors, dim)."""
    tensors = [ref for ref in op.args[0] if ref.shape != (0,)]
    out = op.outputs[0]
    at = dimension(op, out)
    track = w.joined(tensors, (dim for dim in range(len(out.shape)) if dim != at), op)
    if any(at in w.track(ref) for ref in tensors):
        track[at] = np.concatenate([_known(w, ref, at, f"{where(op)} concatenates it untracked") for ref in tensors])
    elif len(set(tensors)) == 1 < len(tensors) and tensors[0].shape[at] == 1:
        track[at] = w.made(len(tensors))  # one tensor over and over, as often as the code asks
    w.bind(out, track)


def _known(w: Propagation, ref: TensorRef, dim: int, reason: str) -> Ids:
    ids = w.track(ref).get(dim)
    return w.constant(ref.shape[dim], reason) if ids is None else ids


def stack(w: Propagation, op: Op) -> None:
    """(tensors, dim): a new dimension, so the tensors are tied."""
    at = dimension(op, op.outputs[0])
    track = w.joined(op.args[0], range(len(op.args[0][0].shape)), op)
    w.bind(op.outputs[0], {dim + (dim >= at): ids for dim, ids in track.items()})


def split(w: Propagation, op: Op) -> None:
    """split (x, size or sizes, dim), chunk: parts of equal size are tied, since an edit must keep them equal."""
    x, dim = op.args[0], dimension(op, op.args[0])
    ids = w.track(x).get(dim)
    if ids is None:
        for out in op.outputs:
            w.bind(out, w.track(x))
        return
    ends = np.cumsum([out.shape[dim] for out in op.outputs])
    parts = np.split(ids, ends[:-1])
    if len({len(part) for part in parts}) == 1:
        w.tie_rows(np.stack(parts))
    else:
        w.ties.apart.extend(parts)
    for out, part in zip(op.outputs, parts, strict=True):
        w.bind(out, w.track(x) | {dim: part})


def unbind(w: Propagation, op: Op) -> None:
    """(x, dim): every position of a dimension as a tensor of its own."""
    x, dim = op.args[0], dimension(op, op.args[0])
    w.freeze(w.track(x).get(dim), f"{where(op)} takes channels apart")
    for out in op.outputs:
        w.bind(out, without(w.track(x), {dim}))


def pad(w: Propagation, op: Op) -> None:
    """constant_pad_nd (x, widths, value): from the last dimension backwards, two widths each."""
    x, widths = op.args[0], op.args[1]
    track = dict(w.track(x))
    for offset in range(len(widths) // 2):
        dim = len(x.shape) - 1 - offset
        before, after = widths[2 * offset], widths[2 * offset + 1]
        if dim in track and (before or after):
            reason = f"{where(op)} pads channels by a fixed number"
            if min(before, after) < 0:
                w.freeze(track[dim], reason)
                del track[dim]
            else:
                track[dim] = np.concatenate([w.constant(before, reason), track[dim], w.constant(after, reason)])
    w.bind(op.outputs[0], track)


def glu(w: Propagation, op: Op) -> None:
    """(x, dim): one half times the sigmoid of the other."""
    x, dim = op.args[0], dimension(op, op.args[0])
    track = dict(w.track(x))
    if dim in track:
        track[dim] = w.tie_rows(track[dim].reshape(2, -1))
    w.bind(op.outputs[0], track)


def numbered(w: Propagation, op: Op) -> None:
    """gather, scatter, index_select, index_add ... (x, dim, index, ...): channels may stand beside `dim`, not on it."""
    x, at = op.args[0], dimension(op, op.args[0])
    aligned = [ref for ref in op.inputs if len(ref.shape) == len(x.shape) > 1]
    reason = f"{op.name} in {where(op)} picks channels by number"
    beside = [dim for dim in range(len(x.shape)) if dim != at and len({ref.shape[dim] for ref in aligned}) == 1]
    w.bind(op.outputs[0], w.joined(aligned, beside, op))
    held = ((ref, dim, ids) for ref in op.inputs for dim, ids in w.track(ref).items())
    w.freeze_all((ids for ref, dim, ids in held if ref not in aligned or dim not in beside), reason)


def index(w: Propagation, op: Op) -> None:
    """x[indices] (x, indices): free along the dimensions that no index touches."""
    x, out = op.args[0], op.outputs[0]
    stands = _beside(op, len(out.shape))
    _freeze_picked(w, op, stands)
    w.bind(out, {stands[dim]: ids for dim, ids in w.track(x).items() if dim in stands})


def index_put(w: Propagation, op: Op) -> None:
    """x[indices] = values (x, indices, values): tied along the dimensions that no index touches."""
    x, values = op.args[0], op.args[2]
    picked = _picked(op)
    whole = len(x.shape) - len(picked) + _width(op)  # dimensions of x[indices], to which the values are broadcast
    stands = _beside(op, whole)
    _freeze_picked(w, op, stands)
    track: Track = {}
    placed = {at + len(values.shape) - whole: dim for dim, at in stands.items()}
    for at, dim in placed.items():
        ids = w.join([w.held(x, dim), *([w.held(values, at)] if at >= 0 else [])], untracked(op))
        if ids is not None and len(ids) == x.shape[dim]:
            track[dim] = ids
    rest = (ids for at, ids in w.track(values).items() if at not in placed)
    w.freeze_all(rest, f"{where(op)} writes channels by number")
    w.bind(op.outputs[0], track)


def _picked(op: Op) -> list[int]:
    """The dimensions of the first operand that indices run over; a mask runs over all of its own."""
    picked: list[int] = []
    place = 0
    for entry in op.args[1]:
        width = 1 if entry is None or entry.dtype not in _MASKS else len(entry.shape)
        picked += [] if entry is None else range(place, place + width)
        place += width
    return picked


_MASKS = (torch.bool, torch.uint8)


def _width(op: Op) -> int:
    """How many dimensions stand in x[indices] for those picked: those to which all indices are broadcast."""
    return max(1 if entry.dtype in _MASKS else len(entry.shape) for entry in op.args[1] if entry is not None)


def _beside(op: Op, rank: int) -> dict[int, int]:
    """Where each dimension that is not picked stands in x[indices], which has so many dimensions."""
    picked = _picked(op)
    rest = [dim for dim in range(len(op.args[0].shape)) if dim not in picked]
    first = (
        picked[0] if picked[-1] - picked[0] == len(picked) - 1 else 0
    )  # indices apart from each other go to the front
    new = rank - len(rest)
    return {dim: number + new * (number >= first) for number, dim in enumerate(rest)}


def _freeze_picked(w: Propagation, op: Op, beside: dict[int, int]) -> None:
    x, reason = op.args[0], f"{where(op)} picks channels by number"
    w.freeze_all((ids for dim, ids in w.track(x).items() if dim not in beside), reason)
    w.freeze_all((ids for entry in op.args[1] if entry is not None for ids in w.track(entry).values()), reason)


def unfold(w: Propagation, op: Op) -> None:
    """Tensor.unfold (x, dim, size, step): windows over one dimension, as a new last one."""
    track = dict(w.track(op.args[0]))
    w.freeze(
        track.pop(argument(op, "dimension") % len(op.args[0].shape), None), f"{where(op)} takes windows over channels"
    )
    w.bind(op.outputs[0], track)
