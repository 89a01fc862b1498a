"""Times of layers by their widths: what lies between samples, and the file."""

import json
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import FileError
from compressor.profiling.timetable import Layer, Machine, Timetable, preferred_multiple

CONV = Layer("Conv", (14, 14), (("kernel_shape", (3, 3)), ("strides", (1, 1))))
HERE = Machine("a chip", "onnxruntime 1.0", 1)


def sampled(ms, taken=(8, 16, 32), made=(8, 24)):
    table = Timetable(HERE)
    for a in taken:
        for b in made:
            table.add(CONV, (a, b), ms(a, b))
    return table


def test_a_product_of_widths_is_met_exactly_between_samples():
    grid = sampled(lambda a, b: a * b).grid(CONV, (8, 16, 32), (8, 24))
    for taken, made in ((8, 8), (12, 8), (20, 17), (32, 24)):
        assert grid.at(taken, made) == pytest.approx(taken * made)


def test_outside_of_the_samples_time_is_in_proportion_above_and_the_smallest_below():
    grid = sampled(lambda a, b: a + b).grid(CONV, (8, 16, 32), (8, 24))
    assert grid.at(64, 24) == pytest.approx(2 * (32 + 24))
    assert grid.at(4, 8) == 8 + 8


def test_a_sample_that_was_disturbed_is_no_slower_than_a_wider_layer():
    table = sampled(lambda a, b: a * b)
    table.add(CONV, (16, 8), 1e6)
    assert table.grid(CONV, (8, 16, 32), (8, 24)).at(16, 8) == 32 * 8


def test_what_was_not_sampled_follows_from_its_neighbours():
    table = Timetable(HERE)
    for width in (8, 16, 32):  # a filter for every channel
        table.add(CONV, (width, width), float(width))
    grid = table.grid(CONV, (8, 16, 32), (8, 16, 32))
    assert [grid.at(width, width) for width in (8, 12, 16, 24, 32)] == pytest.approx([8, 12, 16, 24, 32])


def test_only_the_asked_widths_count():
    table = sampled(lambda a, b: a * b)
    table.add(CONV, (10, 999), 5.0)  # of another network
    assert table.grid(CONV, (8, 16, 32), (8, 24)).at(12, 24) == pytest.approx(12 * 24)


def test_a_layer_without_samples_is_a_key_error():
    with pytest.raises(KeyError):
        Timetable(HERE).grid(CONV, (8,), (8,))
    with pytest.raises(KeyError):
        sampled(lambda a, b: a * b).grid(CONV, (7,), (9,))


def test_the_file_holds_everything(tmp_path: Path):
    table = sampled(lambda a, b: a / b)
    table.whole = {"Conv": 3.0}
    table.write(tmp_path / "table.json")
    newer = json.loads((tmp_path / "table.json").read_text())
    newer["machine"]["volts"], newer["layers"][0]["joules"], newer["carbon"] = 1, 1, 1  # by a newer compressor
    (tmp_path / "table.json").write_text(json.dumps(newer))
    again = Timetable.read(tmp_path / "table.json")
    assert (again.machine, again.samples, again.whole) == (table.machine, table.samples, table.whole)


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"format": "another"}', '{"format": "compressor timetable 1", "machine": {"chip": 1}, "layers": []}',
     '{"format": "compressor timetable 1", "machine": {"chip": "", "runtime": "", "threads": 1}, "layers": [1]}'],
)  # fmt: skip
def test_anything_else_is_one_line(tmp_path: Path, text: str):
    file = tmp_path / "table.json"
    with pytest.raises(FileError, match="cannot be read"):
        Timetable.read(file)
    file.write_text(text)
    with pytest.raises(FileError, match=r"is no timetable of compressor .* tune --kit"):
        Timetable.read(file)


def test_grids_are_what_a_slow_interpolation_gives():
    random = np.random.default_rng(0)
    values = np.sort(random.uniform(1, 9, (3, 4)).cumsum(0).cumsum(1).ravel()).reshape(3, 4)
    taken, made = (8, 24, 64), (8, 16, 40, 48)
    table = Timetable(HERE)
    for i, a in enumerate(taken):
        for j, b in enumerate(made):
            table.add(CONV, (a, b), float(values[i, j]))
    grid = table.grid(CONV, taken, made)
    for a, b in random.uniform(8, 48, (20, 2)):
        i, j = np.searchsorted(taken, a) - 1, np.searchsorted(made, b) - 1
        u, v = (a - taken[i]) / (taken[i + 1] - taken[i]), (b - made[j]) / (made[j + 1] - made[j])
        box = values[i : i + 2, j : j + 2]
        slow = (1 - u) * ((1 - v) * box[0, 0] + v * box[0, 1]) + u * ((1 - v) * box[1, 0] + v * box[1, 1])
        assert grid.at(a, b) == pytest.approx(slow)


def test_wide_vectors_want_sixteen_and_others_eight() -> None:
    assert preferred_multiple("AVX512")[0] == 16
    for capability in ("AVX2", "DEFAULT", "NO AVX", "SVE256"):
        multiple, why = preferred_multiple(capability)
        assert multiple == 8 and capability in why
    assert preferred_multiple()[0] in (8, 16)
