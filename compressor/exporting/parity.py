"""How far ONNX Runtime's outputs are from torch's: the numbers that decide whether an exported file is kept."""

from collections.abc import Sequence

import numpy as np

from compressor.report.manifest import Array

# Largest difference allowed, as a fraction of the largest output: float32 has 1e-7 an operation, and a wrong graph is
# off by far more than the 1e-6 to 1e-5 that re-ordered sums and folded batch norms add up to.
RELATIVE_LIMIT = 1e-4


def largest_difference(expected: Sequence[Array], got: Sequence[Array]) -> tuple[float, float]:
    """The largest difference of any output, absolute and as a fraction of that output's largest value.

    Where the expected output is zero everywhere the fraction is the absolute difference. Different shapes, a different
    number of outputs, and values that are not finite count as infinitely far apart.
    """
    if len(expected) != len(got) or any(e.shape != g.shape for e, g in zip(expected, got)):
        return float("inf"), float("inf")
    absolute = relative = 0.0
    for wanted, found in zip(expected, got):
        if not wanted.size:
            continue
        wide = wanted.astype(np.float64)
        difference = float(np.abs(found.astype(np.float64) - wide).max())
        if not np.isfinite(difference):
            return float("inf"), float("inf")
        scale = float(np.abs(wide).max())
        absolute = max(absolute, difference)
        relative = max(relative, difference / scale if scale else difference)
    return absolute, relative
