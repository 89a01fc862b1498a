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

from compressor.graph import rules
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
    """Whether an ATen operator is left out on purpose: torch's own tags say so, or the lists below do."""
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
    "scaled_dot_product_attention": _attention,
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

_UNKNOWN_COST = {"_fft_r2c", "_fft_c2r", "_fft_c2c"}
_OTHERS = (  # costless, though channels do not pass by a rule
    "adaptive_max_pool1d affine_grid_generator block_diag bucketize diag_embed exponential index_put is_same_size item "
    "masked_scatter masked_select max_pool1d_with_indices max_pool3d meshgrid nonzero one_hot random randperm renorm "
    "repeat_interleave resize rms_norm scalar_tensor searchsorted select_scatter set split_copy split_with_sizes_copy "
    "take take_along_dim tril_indices triu_indices unique _unique2 unique_dim batch_norm_with_update lift "
    "_assert_async _assert_scalar _assert_tensor_metadata _local_scalar_dense sym_constrain_range "
    "sym_constrain_range_for_size sym_numel sym_size sym_storage_offset sym_stride"
)
IGNORED: frozenset[str] = frozenset(rules.RULES.keys() - RULES.keys() - _UNKNOWN_COST | set(_OTHERS.split()))
