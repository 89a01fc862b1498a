"""Peak activation memory, from the life of every tensor in a trace."""

import math

from compressor.graph.trace import Op, TensorRef, Trace


def peak_activation_bytes(trace: Trace) -> int:
    """The most bytes of activations that live at once, for the batch that was traced.

    A tensor lives from the operator that makes it to the last one that reads it or a view of it; the model's inputs
    live from the start, its outputs to the end. Weights and an operator's own scratch space are not counted, and
    nothing is fused: a floor for a runtime that executes these operators in this order, one after the other.
    """
    storage: dict[int, int] = {}  # tensor number -> number of the tensor that owns its memory
    size: dict[int, int] = {}
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    for ref in trace.inputs:
        storage[ref.index], size[ref.index], born[ref.index], last[ref.index] = ref.index, _bytes(ref), 0, 0
    for step, op in enumerate(trace.ops):
        for ref in op.outputs:
            if ref.index in storage or ref.index in trace.parameters:
                continue
            base = _base(op)
            if base is None:
                storage[ref.index], size[ref.index], born[ref.index] = ref.index, _bytes(ref), step
            elif base.index in storage:  # else a view of a weight
                storage[ref.index] = storage[base.index]
        for ref in (*op.inputs, *op.outputs):
            if ref.index in storage:
                last[storage[ref.index]] = step
    for ref in trace.outputs:
        if ref.index in storage:
            last[storage[ref.index]] = len(trace.ops)
    changes = [0] * (len(trace.ops) + 2)
    for owner, count in size.items():
        changes[born[owner]] += count
        changes[last[owner] + 1] -= count
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak


def _base(op: Op) -> TensorRef | None:
    """The tensor of which the operator's outputs are views; None where they have memory of their own."""
    return op.inputs[0] if (op.func.is_view or op.operator.views) and op.inputs else None


def _bytes(ref: TensorRef) -> int:
    return math.prod(ref.shape) * ref.dtype.itemsize
