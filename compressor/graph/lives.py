"""How long the tensors of a run stay in memory."""

import math
from typing import NamedTuple

from compressor.graph.trace import Op, TensorRef, Trace


class Life(NamedTuple):
    """A tensor with memory of its own, and the numbers of the operators that make it and need it last."""

    ref: TensorRef
    born: int
    last: int

    @property
    def bytes(self) -> int:
        """Of the tensor as it was traced."""
        return math.prod(self.ref.shape) * self.ref.dtype.itemsize


def lives(trace: Trace) -> list[Life]:
    """Of every activation; weights are not counted.

    A tensor lives from the operator that makes it to the last one that reads it or a view of it; the model's inputs
    live from the start, its outputs to the end.
    """
    owner: dict[int, int] = {}  # tensor number -> number of the tensor that owns its memory
    born: dict[int, tuple[TensorRef, int]] = {}
    last: dict[int, int] = {}
    for ref in trace.inputs:
        owner[ref.index], born[ref.index], last[ref.index] = ref.index, (ref, 0), 0
    for step, op in enumerate(trace.ops):
        for ref in op.outputs:
            if ref.index in owner or ref.index in trace.parameters:
                continue
            base = _base(op)
            if base is None:
                owner[ref.index], born[ref.index] = ref.index, (ref, step)
            elif base.index in owner:  # else a view of a weight
                owner[ref.index] = owner[base.index]
        for ref in (*op.inputs, *op.outputs):
            if ref.index in owner:
                last[owner[ref.index]] = step
    for ref in trace.outputs:
        if ref.index in owner:
            last[owner[ref.index]] = len(trace.ops)
    return [Life(ref, step, last[index]) for index, (ref, step) in born.items()]


def _base(op: Op) -> TensorRef | None:
    """The tensor of which the operator's outputs are views; None where they have memory of their own."""
    return op.inputs[0] if (op.func.is_view or op.operator.views) and op.inputs else None
