"""Runs side by side: the Pareto front against its definition, what becomes a point, and what is said of fairness."""

import dataclasses
import io
import json
import re
from dataclasses import replace
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from compressor.cli.compare import best_of, show_comparison
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.report.run_comparison import COSTS, Point, comparison_page, comparison_table, front
from compressor.report.runs import Timed, compare_runs
from tests.report.reports import full_report, timing


def run(macs, top1, *, method="l1", data="digits", device="cpu", epochs=2, **more):
    before = Measurements(macs=4000, params=400, file_bytes=1600, latency_ms={"torch": timing(4.0)}, top1=0.95)
    after = Measurements(macs=macs, params=100, file_bytes=macs, latency_ms={"torch": timing(2.0)}, top1=top1)
    settings = {"model": "model.pt", "method": method, "data": data, "command": "prune"}
    rows = tuple({"epoch": epoch, "train_loss": 1.0} for epoch in range(epochs))
    return Report("compressor prune", settings, 0, {}, device, before, after, rows=rows, **more)


def shown(compared):
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(compared))
    return console.file.getvalue()


places = st.tuples(st.none() | st.integers(1, 6), st.none() | st.integers(0, 6))


@given(st.lists(places, max_size=9))
def test_front_is_what_its_definition_says(found):
    points = [Point("", "", None if top1 is None else top1 / 6, macs=macs) for macs, top1 in found]

    def beats(one, other):
        return one.macs <= other.macs and one.top1 >= other.top1 and (one.macs, one.top1) != (other.macs, other.top1)

    known = [point for point in points if point.macs is not None and point.top1 is not None]
    expected = [points.index(point) for point in known if not any(beats(other, point) for other in known)]
    assert {id(points[index]) for index in front(points, "macs")} >= {id(points[index]) for index in expected}
    for index in front(points, "macs"):
        assert not any(beats(other, points[index]) for other in known)


def test_the_best_of_several_is_the_cheapest_where_figures_are_equal():
    points = [
        Point(name, "l1", main=main, macs=macs) for name, main, macs in (("a", 0.9, 7), ("b", 0.9, 5), ("c", 0.8, 1))
    ]
    unmeasured = Point("d", "l1", macs=1)
    assert best_of([*points, unmeasured]).run == "b"
    assert best_of([unmeasured]).run == "d"


def test_starts_are_there_once_and_sub_models_join():
    small = Measurements(macs=500, params=50, top1=0.7)
    compared = compare_runs({"runs/a": run(2000, 0.9), "runs/b": run(1000, 0.8, variants={"exit 1": small})})
    names = [(point.run, point.variant, point.method) for point in compared.points]
    assert names == [
        ("model.pt", "", "start"), ("runs/a", "", "l1"), ("runs/b", "", "l1"), ("runs/b", "exit 1", "l1")
    ]  # fmt: skip
    assert compared.fronts["macs"] == (1, 2, 3, 4) and compared.fronts["file_bytes"] == (1, 3)


def test_a_run_that_is_dearer_and_worse_is_on_no_front():
    compared = compare_runs({"a": run(1000, 0.9), "b": run(2000, 0.8)})
    dominated = next(number for number, point in enumerate(compared.points, 1) if point.run == "b")
    assert all(dominated not in compared.fronts[cost] for cost in ("macs", "file_bytes"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": "mnist:DIR"}, "different test sets"),
        ({"device": "another machine"}, "different devices"),
        ({"epochs": 5}, "2 to 5 epochs"),
    ],
    ids=["data", "device", "budget"],
)
def test_what_does_not_compare_is_said(other, said):
    assert not compare_runs({"a": run(1000, 0.9), "b": run(2000, 0.8)}).notes
    assert said in " ".join(compare_runs({"a": run(1000, 0.9), "b": run(2000, 0.8, **other)}).notes)


def test_the_data_of_all_runs_are_named_for_the_next_command(capsys):
    task = "tasks.py:Streets"
    a, b = (run(macs, 0.9, data=task) for macs in (1000, 2000))
    compared = compare_runs({"a": a, "b": b}, {"c": "give a smaller `batch_size`"})
    assert compared.data == compared.to_json()["data"] == task
    show_comparison(Terminal(as_json=False), compared, "runs/compared")
    printed = capsys.readouterr()
    assert "--task tasks.py:Streets --out deploy" in printed.err
    assert "c failed: give a smaller --batch-size" in " ".join((printed.out + printed.err).split())
    other = run(1500, 0.9, data="digits")
    assert compare_runs({"a": a, "b": other}).data is None


def test_latencies_that_were_timed_in_turn_replace_those_of_the_runs():
    reports = {"a": run(1000, 0.9), "b": run(2000, 0.8, device="another machine")}
    compared = compare_runs(reports, timed=Timed({"a": 0.5}, "this machine"))
    latency = {point.run: point.latency for point in compared.points}
    assert latency == {"a": 0.5, "b": None, "model.pt": None} and not compared.notes
    assert "timed in turn on this machine" in " ".join(shown(compared).split())


def test_a_start_takes_as_long_as_a_run_that_changed_weights_only():
    control = replace(run(2000, 0.8), after=replace(run(2000, 0.8).before, top1=0.9))
    compared = compare_runs({"a": run(1000, 0.9), "control": control}, timed=Timed({"a": 0.5, "control": 0.7}, "here"))
    assert {point.run: point.latency for point in compared.points} == {"a": 0.5, "control": 0.7, "model.pt": 0.7}


def test_nothing_to_compare_is_an_error():
    with pytest.raises(UsageError, match="no finished run"):
        compare_runs({})


def test_the_table_fits_a_terminal_whatever_runs_are_called():
    name = "/somewhere/very/deep/in/a/file/system/that/has/long/names/everywhere/runs/a-run-with-quite-a-long-name"
    compared = compare_runs({name: full_report(), "b": run(313_201_664, 0.91)}, {"c": "out of reach"})
    text = shown(compared)
    assert max(map(len, text.splitlines())) <= 80
    assert "c failed: out of reach" in text


def test_the_page_has_a_plot_for_each_cost_and_every_number():
    compared = compare_runs({"runs/a": run(2000, 0.9), "runs/b": run(1000, 0.8)}, {"runs/c": "out of reach"})
    html = comparison_page(compared)
    text = unescape(re.sub(r"<[^>]+>", " ", html))
    assert html.count("<svg") == len(COSTS) and "Pareto front" in text and "out of reach" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html)
    for part in ("90.00 %", "2.000 kMAC", "1 model.pt", "2 a", "3 b"):
        assert part in text


def test_saved_as_page_and_data(tmp_path):
    compared = compare_runs({"runs/a": dataclasses.replace(run(2000, 0.9), seed=7)})
    page = compared.save(tmp_path / "compared")
    data = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert page.name == "comparison.html" and data == compared.to_json()
    assert data["points"][1] | {"run": "runs/a", "number": 2, "seed": 7, "epochs": 2} == data["points"][1]
    assert compared._repr_html_().startswith("<article")
