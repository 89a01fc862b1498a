"""Peak activation memory, from the life of every tensor in a trace."""

from compressor.graph.lives import lives
from compressor.graph.trace import Trace


def peak_activation_bytes(trace: Trace) -> int:
    """The most bytes of activations that live at once, for the batch that was traced.

    An operator's own scratch space is not counted, and nothing is fused: a floor for a runtime that executes these
    operators in this order, one after the other.
    """
    changes = [0] * (len(trace.ops) + 2)
    for life in lives(trace):
        changes[life.born] += life.bytes
        changes[life.last + 1] -= life.bytes
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak
