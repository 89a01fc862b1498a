"""How long a forward pass takes: one way of measuring for everything that can be called."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

_WARM_RUNS, _WARM_SECONDS = 2, 0.2  # both are reached before anything is measured
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
    seconds: float = 1.0,
) -> Latency:
    """Time `call` again and again for about `seconds`, after a warm-up, with garbage collection held off.

    Args:
        batch: images that one call handles, and `threads`: CPU threads that it uses; both are only written down.
        wait: called after each run inside the measured time, to wait for a device that works in the background
            (`torch.cuda.synchronize`).
    """
    finish = wait or _nothing
    with _collection_held():
        _repeat(call, finish, runs=_WARM_RUNS, seconds=_WARM_SECONDS, runs_when_slow=_WARM_RUNS)
        times = _repeat(call, finish, runs=_MIN_RUNS, seconds=seconds, runs_when_slow=_FEW_RUNS)
    median, p95 = (float(value) for value in np.percentile(times, [50, 95]))
    return Latency(1e3 * median, 1e3 * p95, batch, len(times), threads)


def _repeat(
    call: Callable[[], object], finish: Callable[[], object], *, runs: int, seconds: float, runs_when_slow: int
) -> list[float]:
    """Seconds of each run: at least `runs` and for at least `seconds`; for slow calls fewer."""
    times: list[float] = []
    spent = 0.0
    while len(times) < runs or spent < seconds:
        if spent > 5 * seconds and len(times) >= runs_when_slow:
            break
        start = time.perf_counter()
        call()
        finish()
        times.append(time.perf_counter() - start)
        spent += times[-1]
    return times


def _nothing() -> None:
    return None


@contextmanager
def _collection_held() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
