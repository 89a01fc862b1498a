"""Times of several graphs in one run, in turn, so that whatever else the machine does meets all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.exporting.runtime import open_session
from compressor.report.manifest import Array

ROUNDS = 9
_SECONDS = 0.1  # that a graph runs in each round, once at least
_WARM = 2  # runs before anything is timed


@dataclass(frozen=True)
class Compared:
    """Milliseconds of a graph beside another's: medians over the rounds, and of their ratio the middle 90 %."""

    before: float
    after: float
    ratio: float  # after / before
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> "Compared":
        """From the two times of each round."""
        times = np.array(rounds, dtype=np.float64)
        ratios = times[:, 1] / times[:, 0]
        low, ratio, high = (float(value) for value in np.quantile(ratios, (0.05, 0.5, 0.95)))
        before = float(np.median(times[:, 0]))
        return cls(before, ratio * before, ratio, low, high)


def side_by_side(
    files: Sequence[Path], shape: tuple[int, ...], threads: int, rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:  # fmt: skip
    """Milliseconds of each graph in every round, the shortest of some runs.

    Args:
        shape: of the one input of each, the batch included.
        threads: CPU threads that an operator may use. With one it is the processor's time that counts, which others on
            the machine do not lengthen by waiting.
    """
    if clock is None:
        clock = time.process_time if threads == 1 else time.perf_counter
    image: Array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    sessions = [open_session(file, threads=threads) for file in files]
    feeds = [{session.get_inputs()[0].name: image} for session in sessions]
    for session, feed in zip(sessions, feeds, strict=True):
        for _ in range(_WARM):
            session.run(None, feed)
    found = []
    for _ in range(rounds):
        row = []
        for session, feed in zip(sessions, feeds, strict=True):
            began, best = clock(), float("inf")
            while best == float("inf") or clock() - began < _SECONDS:
                start = clock()
                session.run(None, feed)
                best = min(best, clock() - start)
            row.append(1e3 * best)
        found.append(row)
    return found
