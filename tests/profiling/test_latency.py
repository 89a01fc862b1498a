"""The one way of measuring time."""

import gc
import time

import pytest

from compressor.profiling.latency import measure


def test_a_call_of_known_length_is_measured() -> None:
    latency = measure(lambda: time.sleep(0.005), batch=4, threads=2, seconds=0.1)
    assert 5 <= latency.median <= latency.p95 < 50
    assert (latency.batch, latency.threads) == (4, 2) and latency.runs >= 10


def test_waiting_for_the_device_is_part_of_the_time() -> None:
    latency = measure(lambda: None, wait=lambda: time.sleep(0.005), seconds=0.05)
    assert latency.median >= 5


def test_a_slow_call_is_run_a_few_times_only() -> None:
    calls: list[float] = []

    def slow() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.06)

    assert measure(slow, seconds=0.01).runs == 3
    assert len(calls) < 10


def test_garbage_collection_is_on_again_also_after_a_failure() -> None:
    seen: list[bool] = []
    measure(lambda: seen.append(gc.isenabled()), seconds=0.001)
    assert seen and not any(seen) and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 // 0)
    assert gc.isenabled()
