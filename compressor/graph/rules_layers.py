"""Rules for operators with weights: convolutions, matrix products, normalisation, attention."""

import math

import numpy as np

from compressor.graph.channels import Ids
from compressor.graph.trace import Op, TensorRef
from compressor.graph.walk import Rule, Track, Walk

KERNEL = "kernel size"


def convolution(w: Walk, op: Op) -> None:
    """(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    x, weight, bias, transposed, groups = op.args[0], op.args[1], op.args[2], op.args[6], op.args[8]
    kernel = w.track(weight)
    w.freeze_all((ids for dim, ids in kernel.items() if dim > 1), KERNEL)
    beside = (ids for dim, ids in w.track(x).items() if dim != 1)
    w.freeze_all(beside, f"{op.module or 'the model'} convolves over channels")
    out = _grouped(w, op, groups, transposed) if groups > 1 else _dense(w, op, transposed)
    if bias is not None:
        out = w.join(((out, op.outputs[0].shape[1]), (w.track(bias).get(0), bias.shape[0])), "bias not tracked")
    w.give(op.outputs[0], {} if out is None else {1: out})
    _convolution_cost(w, op, transposed, groups)


def _dense(w: Walk, op: Op, transposed: bool) -> Ids | None:
    x, weight = op.args[0], op.args[1]
    reads, makes = (0, 1) if transposed else (1, 0)
    w.contract((x, 1), (weight, reads), op)
    out = w.track(weight).get(makes)
    w.size(op, in_channels=w.track(x).get(1), out_channels=out)
    return out


def _grouped(w: Walk, op: Op, groups: int, transposed: bool) -> Ids | None:
    x, weight = op.args[0], op.args[1]
    ids, rows, columns = w.track(x).get(1), w.adopt(weight, 0), w.track(weight).get(1)
    untracked = f"{op.module or 'the model'} has groups and an input or a weight that is not tracked"
    multiplicity = op.outputs[0].shape[1] // groups
    if x.shape[1] == groups:  # depthwise: a channel keeps its own filters, in the whole network
        spread = None if ids is None else ids.repeat(1 if transposed else multiplicity)
        rows = w.join(((spread, 2), (rows, 2)), untracked)
        w.freeze(columns, "depth multiplier of a transposed convolution")
        out = rows.repeat(multiplicity) if transposed and rows is not None else rows
        w.size(op, in_channels=ids, out_channels=out, groups=ids)
        return out
    if ids is None or rows is None:
        w.freeze_all((a for a in (ids, rows, columns) if a is not None), untracked)
        return None
    inner = w.tie_rows(ids.reshape(groups, -1))
    if transposed:
        w.contract((x, 1), (weight, 0), op)
        out = None if columns is None else np.tile(columns, groups)
    else:
        if columns is not None:
            w.tie(inner, columns)
            w.ties.columns.append(columns)
        w.tie_rows(rows.reshape(groups, -1))
        out = rows
    w.size(op, in_channels=ids, out_channels=out)
    return out


def _convolution_cost(w: Walk, op: Op, transposed: bool, groups: int) -> None:
    x, weight, out = op.args[0], op.args[1], op.outputs[0]
    spatial = x.shape[2:] if transposed else out.shape[2:]
    factor = out.shape[0] * math.prod(spatial) * math.prod(weight.shape[2:])
    track = w.track(weight)
    w.cost(op, factor, ((track.get(0), weight.shape[0]), (track.get(1), weight.shape[1])))


def matrix_product(w: Walk, op: Op) -> None:
    """mm, bmm (a, b) and addmm, baddbmm (bias, a, b): (..., n, k) times (..., k, m)."""
    a, b = (op.args[1], op.args[2]) if op.name in ("addmm", "baddbmm") else (op.args[0], op.args[1])
    rank, out = len(a.shape), op.outputs[0]
    w.contract((a, rank - 1), (b, rank - 2), op)
    track: Track = {}
    for dim in range(rank - 2):
        ids = w.join(((w.track(a).get(dim), a.shape[dim]), (w.track(b).get(dim), b.shape[dim])), _untracked(op))
        if ids is not None:
            track[dim] = ids
    for ref, dim in ((a, rank - 2), (b, rank - 1)):
        if dim in w.track(ref):
            track[dim] = w.track(ref)[dim]
    if op.name in ("addmm", "baddbmm"):
        track = _added(w, op, op.args[0], track)
    w.give(out, track)
    k = w.track(a).get(rank - 1)
    axes = [(track.get(dim), out.shape[dim]) for dim in range(rank)] + [(k, a.shape[rank - 1])]
    w.cost(op, 1, axes)
    if rank == 2:
        w.size(op, in_features=k, out_features=track.get(1))


def _added(w: Walk, op: Op, bias: TensorRef, track: Track) -> Track:
    out = op.outputs[0]
    shift = len(out.shape) - len(bias.shape)
    for dim, size in enumerate(bias.shape):
        ids = w.join(((track.get(dim + shift), out.shape[dim + shift]), (w.track(bias).get(dim), size)), _untracked(op))
        if ids is not None:
            track[dim + shift] = ids
    return track


def linear(w: Walk, op: Op) -> None:
    """linear (x, weight, bias), as exported programs keep it."""
    x, weight = op.args[0], op.args[1]
    last = len(x.shape) - 1
    w.contract((x, last), (weight, 1), op)
    track = {dim: ids for dim, ids in w.track(x).items() if dim != last}
    out = w.track(weight).get(0)
    track |= {} if out is None else {last: out}
    if len(op.args) > 2 and op.args[2] is not None:
        track = _added(w, op, op.args[2], track)
    w.give(op.outputs[0], track)
    k = w.track(x).get(last)
    factor = math.prod(x.shape[:-1])
    w.cost(op, factor, ((out, weight.shape[0]), (k, weight.shape[1])))
    w.size(op, in_features=k, out_features=out)


def matrix_vector(w: Walk, op: Op) -> None:
    """mv (matrix, vector), dot and vdot (vector, vector)."""
    a, b = op.args[0], op.args[1]
    w.contract((a, len(a.shape) - 1), (b, 0), op)
    ids = w.track(a).get(0) if op.name == "mv" else None
    w.give(op.outputs[0], {} if ids is None else {0: ids})
    w.cost(op, 1, [(w.track(a).get(dim), size) for dim, size in enumerate(a.shape)])


def batch_norm(w: Walk, op: Op) -> None:
    """(x, weight, bias, running_mean, running_var, ...): the first tensors of the arguments, per channel."""
    x, *vectors = [arg for arg in op.args[:5] if isinstance(arg, TensorRef)]
    ids = w.join(
        [(w.track(x).get(1), x.shape[1])] + [(w.track(v).get(0), v.shape[0]) for v in vectors],
        f"{op.module or 'the model'} normalises channels that are not tracked",
    )
    rest = {dim: other for dim, other in w.track(x).items() if dim != 1}
    for other in rest.values():
        w.prune_only(other, f"{op.module or 'the model'} takes its statistics over these channels")
    w.give(op.outputs[0], rest if ids is None else rest | {1: ids})
    for ref in op.outputs[1:]:  # the batch's statistics
        w.give(ref, {0: ids} if ids is not None and ref.shape == (len(ids),) else {})
    w.size(op, num_features=ids)


def layer_norm(w: Walk, op: Op) -> None:
    """(x, normalized_shape, weight, bias, eps) and rms_norm: statistics over the last dimensions."""
    x, shape = op.args[0], op.args[1]
    vectors = [arg for arg in op.args[2:] if isinstance(arg, TensorRef)]
    first = len(x.shape) - len(shape)
    track = dict(w.track(x))
    for offset, size in enumerate(shape):
        dim = first + offset
        ids = w.join([(track.get(dim), size)] + [(w.track(v).get(offset), size) for v in vectors], _untracked(op))
        if ids is not None:
            track[dim] = ids
            w.prune_only(ids, f"{op.module or 'the model'} normalises across channels")
            w.size(op, **{f"normalized_shape.{offset}": ids})
    w.give(op.outputs[0], track)


def group_norm(w: Walk, op: Op) -> None:
    """native_group_norm (x, weight, bias, N, C, HxW, groups, eps): statistics over the channels of each group."""
    x, groups = op.args[0], op.args[6]
    vectors = [arg for arg in op.args[1:3] if isinstance(arg, TensorRef)]
    ids = w.join([(w.track(x).get(1), x.shape[1])] + [(w.track(v).get(0), v.shape[0]) for v in vectors], _untracked(op))
    if ids is not None:
        if groups == len(ids):
            w.size(op, num_groups=ids)
        else:
            w.tie_rows(ids.reshape(groups, -1))
            w.prune_only(ids, f"{op.module or 'the model'} normalises across channels")
        w.size(op, num_channels=ids)
    w.give(op.outputs[0], {} if ids is None else {1: ids})


def weight_norm(w: Walk, op: Op) -> None:
    """_weight_norm_interface (v, g, dim): v rescaled to the length g along every dimension but one."""
    v, g, kept = op.args[0], op.args[1], op.args[2] if len(op.args) > 2 else 0
    track = dict(w.track(v))
    w.join(((track.get(kept), v.shape[kept]), (w.track(g).get(kept), g.shape[kept])), _untracked(op))
    for dim, ids in track.items():
        if dim != kept:
            w.prune_only(ids, f"{op.module or 'the model'} takes the length of its weight over these channels")
    w.give(op.outputs[0], track)
    w.give(op.outputs[1], {kept: track[kept]} if kept in track else {})


def attention(w: Walk, op: Op) -> None:
    """Scaled dot product attention (query, key, value, ...): (batch, heads, tokens, features) each."""
    q, k, v = op.args[:3]
    rank = len(q.shape)
    w.contract((q, rank - 1), (k, rank - 1), op)
    w.freeze_all((ids for ref in (q, k, v) for dim, ids in w.track(ref).items() if dim < rank - 1), "attention heads")
    if op.kwargs.get("scale") is None:
        for ref in (q, k):
            w.freeze(w.track(ref).get(rank - 1), "attention divides by the root of their number")
    last = w.track(v).get(rank - 1)
    w.give(op.outputs[0], {} if last is None else {rank - 1: last})


def embedding(w: Walk, op: Op) -> None:
    """(weight, indices): rows of a table."""
    weight, out = op.args[0], op.outputs[0]
    w.freeze(w.track(weight).get(0), "entries of an embedding")
    ids = w.track(weight).get(1)
    w.give(out, {} if ids is None else {len(out.shape) - 1: ids})


def _untracked(op: Op) -> str:
    return f"{op.name} in {op.module or 'the model'} joins it with something that is not tracked"


BATCH_NORMS = (
    "batch_norm",
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
)
_ATTENTIONS = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
LAYERS: dict[str, Rule] = {
    "convolution": convolution,
    "mm": matrix_product,
    "bmm": matrix_product,
    "addmm": matrix_product,
    "baddbmm": matrix_product,
    "linear": linear,
    "mv": matrix_vector,
    "dot": matrix_vector,
    "vdot": matrix_vector,
    "native_layer_norm": layer_norm,
    "layer_norm": layer_norm,
    "_fused_rms_norm": layer_norm,
    "native_group_norm": group_norm,
    "_weight_norm_interface": weight_norm,
    "embedding": embedding,
    **dict.fromkeys(BATCH_NORMS, batch_norm),
    **dict.fromkeys(_ATTENTIONS, attention),
}
