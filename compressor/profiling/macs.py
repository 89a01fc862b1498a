"""Multiply-adds of every operator that ran, by the table of operators.

An operator is in one of three states, and never silently in none: counted (it multiplies matrices or convolves), free
(element-wise, pooling, normalisation, shapes), or uncounted, which the result lists by name. Multiplications with zero
padding count, causal attention counts whole, bias additions do not count: the conventions of fvcore and of torch's own
FlopCounterMode, which reports two operations for one multiply-add.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compressor.graph.trace import Op, Trace, trace


@dataclass(frozen=True, slots=True)
class MacCount:
    """Multiply-adds of a trace, for the whole batch that was traced."""

    total: int
    by_module: dict[str, int]  # dotted name of the innermost module -> its own; modules without any are left out
    uncounted: dict[str, int]  # "namespace::operator" -> number of calls, for operators with no rule
    varying: int = 0  # of the total: on as many rows as values decide, such as the boxes that are left of all


def count_macs(trace: Trace) -> MacCount:
    """Add up what the table says of every operator of the trace."""
    by_module: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    found, varying = set[int](), 0  # tensors whose size values decide
    for op in trace.ops:
        varies = _varies(op, found)
        found.update(ref.index for ref in op.outputs if varies)
        if op.operator.macs is None:
            uncounted[f"{op.func.namespace}::{op.name}"] += 1
            continue
        for axes in op.operator.macs(op):
            macs = math.prod(axis if isinstance(axis, int) else axis[0].shape[axis[1]] for axis in axes)
            by_module[op.module] += macs
            varying += macs if varies else 0
    return MacCount(by_module.total(), dict(by_module), dict(uncounted), varying)


def _varies(op: Op, found: set[int]) -> bool:
    """Whether values decide on the size of what an operator gives, by itself or by that of what it reads.

    An index that holds numbers has a size of its own; what has the size of the first operand has it from there.
    """
    first, rest = op.inputs[:1], op.inputs[1:]
    if torch.Tag.dynamic_output_shape in op.func.tags:
        if not rest or any(ref.dtype in (torch.bool, torch.uint8) for ref in rest):
            return True
    elif first and all(ref.shape == first[0].shape for ref in op.outputs):
        rest = ()
    return any(ref.index in found for ref in (*first, *rest))


def macs_of(module: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of a module for one input of `shape` (without the batch), of the type of its parameters."""
    like = next(module.parameters(), torch.zeros(0))
    return count_macs(trace(module, torch.zeros(1, *shape, dtype=like.dtype, device=like.device))).total
