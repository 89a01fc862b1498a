"""Times of single images: means over images, and calls that take turns."""

import gc
import time

from compressor.routing.timing import time_images


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
