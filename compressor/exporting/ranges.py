"""The range of values that each activation keeps in INT8: what is cut off against what all others lose by rounding."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from compressor.exporting.flatten import quiet
from compressor.report.manifest import Array

BINS = 2048  # of a histogram, from the largest magnitude below zero to that above
_STEPS = 255  # between the numbers of 8 bits

# Errors of rounding are as often too high as too low and cancel out in the next layer's sums; those of cutting off all
# point one way. Of 1, 3, 10, 30 and 100 this made the scores err least, or nearly, on all of the four networks of
# `benchmarks.runtimes` that have published weights or were trained there.
_CUTTING = 3.0
_SHARES = np.r_[1.0, np.geomspace(0.99, 0.1, 40)]  # of the smallest and the largest value that may be kept


class Reader:
    """Hands out what a graph is called with, piece by piece, as ONNX Runtime's quantizer reads it."""

    def __init__(self, pieces: Iterable[dict[str, Array]]) -> None:
        self._pieces = iter(pieces)

    def get_next(self) -> dict[str, Array] | None:
        """The next piece; None after the last."""
        return next(self._pieces, None)


def least_error(counts: Array, edges: Array, least: float, most: float) -> tuple[float, float]:
    """The range, zero included, with the smallest mean squared error in 8 bits.

    Args:
        counts, edges: a histogram of the values (n) and the edges of its bins (n + 1).
        least, most: the smallest and the largest value.
    """
    middles, weights = (edges[:-1].astype(np.float64) + edges[1:]) / 2, counts.astype(np.float64)
    lows, highs = min(least, 0.0) * _SHARES, max(most, 0.0) * _SHARES
    below = np.array([(weights * np.clip(low - middles, 0, None) ** 2).sum() for low in lows])
    above = np.array([(weights * np.clip(middles - high, 0, None) ** 2).sum() for high in highs])
    rounding = weights.sum() * ((highs - lows[:, None]) / _STEPS) ** 2 / 12
    low, high = np.unravel_index((_CUTTING * (below[:, None] + above) + rounding).argmin(), rounding.shape)
    return float(lows[low]), float(highs[high])


def write_ranges(graph: Path, kinds: list[str], pieces: Iterable[dict[str, Array]], target: Path) -> None:
    """Write the ranges of what a graph's operators of some kinds read and give, as ONNX Runtime's quantizer reads them.

    Args:
        graph: an ONNX file, prepared for the quantizer.
        kinds: of operators that will be quantized.
        pieces: what the graph is called with, a few images at a time.
        target: a JSON file.
    """
    from onnxruntime import quantization

    histograms: Any = quantization.create_calibrator(
        graph,
        kinds,
        augmented_model_path=str(target.with_suffix(".onnx")),
        calibrate_method=quantization.CalibrationMethod.Entropy,  # the one that keeps whole histograms
        extra_options={"num_bins": BINS},
    )
    with quiet():
        for piece in pieces:
            histograms.collect_data(Reader([piece]))  # all at once, it would keep every map of every image
    ranges = {
        name: tuple(np.array(each, dtype=np.float32) for each in least_error(counts, edges, float(least), float(most)))
        for name, (counts, edges, least, most, *_) in histograms.collector.histogram_dict.items()
    }
    quantization.save_tensors_data(quantization.TensorsData(quantization.CalibrationMethod.MinMax, ranges), target)
