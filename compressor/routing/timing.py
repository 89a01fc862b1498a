"""Milliseconds of networks that take a different time for every image: one image at a time, on the same images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from compressor.graph.neutral import uncollected
from compressor.profiling.latency import once
from compressor.report.progress import counted

_WARM = 3  # images that are run before anything is measured


@dataclass(frozen=True)
class ImageTimes:
    """Wall-clock time of one call, in milliseconds, over images; for each image the median of its repetitions."""

    mean: float
    median: float
    p95: float
    runs: int  # images times repetitions
    threads: int  # CPU threads that one operator may use
    batch: int = 1


def time_images(
    calls: Mapping[str, Callable[[int], object]], images: int, *, threads: int, repeats: int = 5
) -> dict[str, ImageTimes]:
    """Time `call(number)` for the numbers below `images`, the calls taking turns, so that all see the same machine."""
    taken = {name: np.zeros((images, repeats)) for name in calls}
    for call in calls.values():
        for number in range(min(_WARM, images)):
            call(number)
    with uncollected():
        for number in counted("timing images", range(images), images):
            for turn in range(repeats):
                for name, call in calls.items():
                    taken[name][number, turn] = 1e3 * once(partial(call, number))
    return {name: _summary(np.median(times, axis=1), images * repeats, threads) for name, times in taken.items()}


def _summary(times: "np.ndarray[tuple[int], np.dtype[np.float64]]", runs: int, threads: int) -> ImageTimes:
    median, p95 = (float(value) for value in np.percentile(times, [50, 95]))
    return ImageTimes(float(times.mean()), median, p95, runs, threads)
