"""The one way of measuring time."""

import gc
import os
import time
from statistics import median

import pytest
import torch
from torch import nn

from compressor.profiling import latency as module
from compressor.profiling.latency import measure, measure_in_turn, time_images


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


def test_what_slows_the_machine_for_a_while_slows_all_that_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def call() -> None:  # ten times as slow in the first three seconds
        now[0] += 0.01 if now[0] < 3 else 0.001

    one, other = measure_in_turn([call, call], seconds=2.0)
    assert 0.8 < one.median / other.median < 1.25
    now[0] = 0.0
    alone = [measure(call, seconds=2.0).median for _ in range(2)]
    assert max(alone) / min(alone) > 5, "in the control, which measures one after the other"


def test_garbage_collection_is_on_again_also_after_a_failure() -> None:
    seen: list[bool] = []
    measure(lambda: seen.append(gc.isenabled()), seconds=0.001)
    assert seen and not any(seen) and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 // 0)
    assert gc.isenabled()


@pytest.mark.slow
@pytest.mark.skipif(os.getloadavg()[0] > 0.5, reason="the machine is busy, and times of a busy machine are noise")
def test_two_runs_of_the_same_measurement_differ_by_a_tenth_at_most() -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    images = torch.randn(1, 3, 32, 32)

    def run() -> float:
        with torch.no_grad():
            return median(measure(lambda: network(images), seconds=0.5).median for _ in range(5))

    first, second = run(), run()
    assert abs(first - second) < 0.1 * min(first, second)


def test_slow_images_count_in_the_mean_and_not_in_the_median():
    def call(number: int) -> None:
        time.sleep(0.02 if number == 0 else 0.001)

    found = time_images({"one": call}, 5, threads=1, repeats=3)["one"]
    assert found.median < found.mean
    assert found.runs == 15
    assert found.batch == 1


def test_calls_take_turns_on_every_image():
    order = []
    calls = {name: lambda number, n=name: order.append((n, number)) for name in "ab"}
    time_images(calls, 4, threads=1, repeats=2)
    measured = order[6:]  # three images of each are run first
    assert measured == [(name, number) for number in range(4) for _ in range(2) for name in "ab"]
    assert gc.isenabled()
