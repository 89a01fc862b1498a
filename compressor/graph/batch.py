"""What the first dimension of an input is: images, or the channels of a single one that has no batch."""

import numpy as np

from compressor.graph.groups import roots_of
from compressor.graph.propagate import Propagation, Unions
from compressor.graph.trace import Trace


def batch_of(trace: Trace) -> int:
    """How many images the first input holds: 1 where its first dimension is read by weights."""
    first = next((ref for ref in trace.inputs if ref.shape), None)
    if first is None or first.shape[0] == 1:
        return 1
    # torch gives an image without a batch a dimension of its own in front of the operator that wants one.
    alone = any(op.operator.kind == "convolution" and op.args[0].shape[0] == 1 for op in trace.ops)
    if len(first.shape) > 1 and not alone:
        return first.shape[0]
    ties = Unions()
    walk = Propagation(trace, ties)
    own = ties.fresh(first.shape[0])
    walk.bind(first, {0: own})
    walk.follow()
    roots = roots_of(ties)
    read = np.concatenate([roots[ids] for ids in ties.blocks.values()] or [roots[:0]])
    return 1 if np.isin(roots[own], read).any() else first.shape[0]
