"""Times of several graphs in one run, in turn, so that whatever else the machine does meets all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from compressor.exporting.runtime import noise, open_session
from compressor.graph.neutral import uncollected
from compressor.profiling.latency import once

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
    files: Sequence[Path], shape: tuple[int, ...], threads: int, rounds: int = ROUNDS
) -> list[list[float]]:
    """Milliseconds of each graph in every round, the shortest of some runs.

    Args:
        shape: of the one input of each, the batch included.
        threads: CPU threads that an operator may use.
    """
    image = noise(shape)
    sessions = [open_session(file, threads=threads) for file in files]
    calls = [partial(session.run, None, {session.get_inputs()[0].name: image}) for session in sessions]
    for call in calls:
        for _ in range(_WARM):
            call()
    with uncollected():
        return [[1e3 * _shortest(call) for call in calls] for _ in range(rounds)]


def _shortest(call: Callable[[], object]) -> float:
    """Seconds of the shortest of the runs that fit into a round."""
    began, best = time.perf_counter(), once(call)
    while time.perf_counter() - began < _SECONDS:
        best = min(best, once(call))
    return best
