"""Multiply-adds of every operator that ran: a table from operator to a small function, over a trace.

An operator is in one of three states, and never silently in none: counted (it multiplies matrices or convolves),
ignored on purpose (element-wise, pooling, normalisation, shapes), or uncounted, which the result lists by name.
Multiplications with zero padding count, causal attention counts whole, bias additions do not count: the conventions of
fvcore and of torch's own FlopCounterMode, which reports two operations for one multiply-add.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from compressor.graph.trace import Op, TensorRef, Trace


@dataclass(frozen=True, slots=True)
class MacCount:
    """Multiply-adds of a trace, for the whole batch that was traced."""

    total: int
    by_module: dict[str, int]  # dotted name of the innermost module -> its own; modules without any are left out
    uncounted: dict[str, int]  # "namespace::operator" -> number of calls, for operators with no rule


def count_macs(trace: Trace) -> MacCount:
    """Apply `RULES` to every operator of the trace."""
    by_module: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for op in trace.ops:
        if op.func.namespace != "aten":
            uncounted[f"{op.func.namespace}::{op.name}"] += 1
        elif op.name in RULES:
            by_module[op.module] += RULES[op.name](op)
        elif not is_ignored(op):
            uncounted[f"aten::{op.name}"] += 1
    return MacCount(by_module.total(), dict(by_module), dict(uncounted))


def is_ignored(op: Op) -> bool:
    """Whether an ATen operator is left out on purpose: torch's own tags say so, or the list below does."""
    return op.func.is_view or op.name in IGNORED or not _FREE_TAGS.isdisjoint(op.func.tags)


def _convolution(op: Op) -> int:
    image, weight, transposed = op.args[0], op.args[1], op.args[6]
    # Each position of the output gathers, or (transposed) each of the input scatters, one kernel over a group.
    positions = image if transposed else op.outputs[0]
    return _size(positions.shape) * _size(weight.shape[1:])


def _product(op: Op) -> int:
    """`left @ right`, the last two tensors among the arguments; before them may stand one that is added."""
    left, right = [argument for argument in op.args if isinstance(argument, TensorRef)][-2:]
    columns: int = right.shape[-1] if len(right.shape) > 1 else 1
    return _size(left.shape) * columns


def _linear(op: Op) -> int:
    image, weight = op.args[:2]
    return _size(image.shape) * _size(weight.shape[:-1])


def _attention(op: Op) -> int:
    query, key, value = op.args[:3]
    *rows, width = query.shape
    return _size(rows) * int(key.shape[-2]) * int(width + value.shape[-1])


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)


RULES: dict[str, Callable[[Op], int]] = {
    "convolution": _convolution,
    # einsum, matmul, linear, Conv1d of size one and the cells of recurrent layers all come down to these.
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": _product,
    "vdot": _product,
    "addmm": _product,
    "addmv": _product,
    "addbmm": _product,
    "baddbmm": _product,
    "_addmm_activation": _product,
    "_int_mm": _product,
    "linear": _linear,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
}

# A tag that an older torch does not have yet is simply absent.
_FREE_TAGS = {
    tag
    for tag in (getattr(torch.Tag, name, None) for name in ("pointwise", "reduction", "view_copy"))
    if tag is not None
}

_POOLING = (
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_pool2d max_pool3d avg_pool1d "
    "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
    "max_unpool2d max_unpool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d"
)
_NORMALISATION = (
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "_batch_norm_with_update _batch_norm_no_update batch_norm_with_update native_layer_norm native_group_norm "
    "_fused_rms_norm rms_norm _softmax _safe_softmax _log_softmax softmax log_softmax native_dropout "
    "_weight_norm_interface renorm"
)
_REDUCTION = (
    "sum mean amax amin max min aminmax prod var std var_mean std_mean any all argmax argmin norm linalg_vector_norm "
    "logsumexp cumsum cumprod logcumsumexp cummax cummin count_nonzero median nanmedian mode kthvalue topk sort "
    "nansum"
)
_ELEMENTWISE = (  # those whose in-place form carries no tag, or that take a table
    "add sub mul div relu hardswish hardtanh hardsigmoid silu mish elu leaky_relu prelu _prelu_kernel rrelu glu gelu "
    "softplus softshrink hardshrink threshold log_sigmoid_forward celu selu clamp clamp_min clamp_max where lerp "
    "bernoulli normal uniform random exponential bucketize searchsorted rand randn rand_like randn_like randperm "
    "affine_grid_generator"
)
_SHAPES = (
    "_unsafe_view _reshape_alias reshape as_strided resize set copy _to_copy clone contiguous cat stack roll flip "
    "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d "
    "repeat repeat_interleave index index_select gather scatter scatter_add scatter_reduce index_put index_add "
    "index_copy index_fill masked_fill masked_select masked_scatter take take_along_dim embedding nonzero unique "
    "_unique2 unique_dim one_hot tril triu tril_indices triu_indices rot90 im2col col2im channel_shuffle "
    "native_channel_shuffle pixel_shuffle pixel_unshuffle select_scatter slice_scatter diag_embed "
    "split_copy split_with_sizes_copy unsafe_split unsafe_split_with_sizes unsafe_chunk meshgrid block_diag lift "
    "lift_fresh lift_fresh_copy detach alias_copy view_copy"
)
_MAKING = (
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided new_zeros new_ones new_full zeros "
    "zeros_like ones ones_like full full_like zero fill scalar_tensor arange linspace logspace eye _local_scalar_dense "
    "item is_same_size equal _assert_async _assert_scalar _assert_tensor_metadata sym_size sym_numel sym_stride "
    "sym_storage_offset sym_constrain_range sym_constrain_range_for_size"
)
IGNORED: frozenset[str] = frozenset(
    " ".join((_POOLING, _NORMALISATION, _REDUCTION, _ELEMENTWISE, _SHAPES, _MAKING)).split()
)
