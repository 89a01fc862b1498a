"""Milliseconds of a call, of calls in turn, and of networks that take a different time for every image."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

import numpy as np

from compressor.graph.neutral import uncollected
from compressor.report.progress import counted

BUDGET_SECONDS = 1.0  # that are measured, after the warm-up
_WARM_RUNS, _WARM_SECONDS = 2, 0.2  # both are reached before anything is measured
_ROUNDS = 5  # in which several calls take turns
_MIN_RUNS, _FEW_RUNS = 10, 3  # the second is enough once a measurement takes five times its budget


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock time of one call, in milliseconds."""

    median: float
    p95: float
    batch: int
    runs: int
    threads: int  # CPU threads that one operator may use


def measure(
    call: Callable[[], object],
    *,
    batch: int = 1,
    threads: int = 1,
    wait: Callable[[], object] | None = None,
    seconds: float = BUDGET_SECONDS,
) -> Latency:
    """Time `call` again and again for about `seconds`, after a warm-up, with garbage collection held off.

    Args:
        batch: images that one call handles, and `threads`: CPU threads that it uses; both are only written down.
        wait: called after each run inside the measured time, to wait for a device that works in the background
            (`torch.cuda.synchronize`).
    """
    return measure_in_turn([call], batch=batch, threads=threads, wait=wait, seconds=seconds)[0]


def measure_in_turn(
    calls: Sequence[Callable[[], object]],
    *,
    batch: int = 1,
    threads: int = 1,
    wait: Callable[[], object] | None = None,
    seconds: float = BUDGET_SECONDS,
) -> list[Latency]:
    """The same of several calls in rounds, so that whatever slows the machine for a while slows all of them."""
    timed = [partial(once, call) if wait is None else partial(once, call, wait) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    with uncollected():
        for each in timed:
            _repeat(each, [], runs=_WARM_RUNS, seconds=_WARM_SECONDS, runs_when_slow=_WARM_RUNS)
        for done in (np.arange(_ROUNDS) + 1) / _ROUNDS:
            runs, few = ceil(_MIN_RUNS * done), ceil(_FEW_RUNS * done)
            for each, found in zip(timed, times):
                _repeat(each, found, runs=runs, seconds=seconds * done, runs_when_slow=few)
    return [_latency(found, batch, threads) for found in times]


def _latency(times: Sequence[float], batch: int, threads: int) -> Latency:
    median, p95 = (float(value) for value in np.percentile(times, [50, 95]))
    return Latency(1e3 * median, 1e3 * p95, batch, len(times), threads)


def _repeat(timed: Callable[[], float], times: list[float], *, runs: int, seconds: float, runs_when_slow: int) -> None:
    """Add the seconds of each run until there are `runs` and they took `seconds`; for slow calls fewer."""
    spent = sum(times)
    while len(times) < runs or spent < seconds:
        if spent > 5 * seconds and len(times) >= runs_when_slow:
            break
        times.append(timed())
        spent += times[-1]


def once(call: Callable[[], object], finish: Callable[[], object] = lambda: None) -> float:
    """Seconds that a call takes, and what waits for its end."""
    start = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - start


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
