"""Plots that stand in a page: valid SVG in the page's colours."""

import re
from xml.etree import ElementTree

import pytest

from compressor.report.html import draw
from compressor.report.measurements import Measurements
from compressor.report.plots import run_plots
from compressor.report.sections import Curve, Plot
from tests.report.reports import full_report

LINE = Plot("a < b & $c$", "epoch", "loss", (Curve("<one>", (1, 2, 3), (0.5, None, 0.1)), Curve("two", (1,), (0.2,))))
BARS = Plot(
    "Filters",
    "filters",
    "",
    (Curve("before", ("a$b", "c&d"), (3, 4)), Curve("after", ("a$b", "c&d"), (1, None))),
    "bars",
)
POINTS = Plot("Front", "MMAC", "top-1", (Curve("l1", (0.5, 2), (0.8, 0.9)),), "points")
EMPTY = Plot("Nothing", "epoch", "loss", (Curve("none", (1, 2), (None, None)),))


@pytest.mark.parametrize("plot", [LINE, BARS, POINTS, EMPTY], ids=["line", "bars", "points", "empty"])
def test_svg_is_valid_and_takes_its_colours_from_the_page(plot: Plot) -> None:
    svg = draw(plot)
    ElementTree.fromstring(svg)
    assert svg.startswith("<svg") and "viewBox" in svg
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg), "a fixed colour would vanish on one of the two backgrounds"
    assert "currentColor" in svg and "font-family" not in svg and "<style" not in svg
    assert "<metadata" not in svg


def test_text_of_the_user_is_text() -> None:
    root = ElementTree.fromstring(draw(LINE))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"<one>", "two", "epoch", "loss"} <= texts
    assert root.get("aria-label") == "a < b & $c$ (loss, epoch): <one> from 0.5 to 0.1; two at 0.2"
    assert "a$b" in {
        element.text for element in ElementTree.fromstring(draw(BARS)).iter("{http://www.w3.org/2000/svg}text")
    }


def test_two_plots_in_one_page_share_no_identifier() -> None:
    first, second = (set(re.findall(r'\bid="([^"]+)"', draw(plot))) for plot in (LINE, POINTS))
    assert first and second and not first & second
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', draw(LINE))) <= first


def test_the_same_plot_is_drawn_the_same() -> None:
    assert draw(BARS) == draw(BARS)


def test_a_runs_metrics_become_plots() -> None:
    plots = {plot.title: plot for plot in run_plots(full_report().rows)}
    assert set(plots) == {"Accuracy", "Loss"}
    validation, training = plots["Accuracy"].curves
    assert (validation.label, training.label) == ("validation", "training")
    assert validation.x == tuple(range(1, 13)) and validation.y[1] is None
    assert training.y[0] == pytest.approx(10.0), "accuracy in percent"


def test_the_accuracy_of_the_original_is_a_line_that_the_picture_names_in_words_too() -> None:
    report = full_report()
    accuracy, loss = run_plots(report.rows, report.before)
    line = accuracy.curves[-1]
    assert (line.label, line.x, line.look) == ("original, on test data", (0, 12), "dashed")
    assert line.y == pytest.approx((93.21, 93.21))
    assert [curve.look for curve in loss.curves] == ["", ""]
    assert draw(accuracy).count("original, on test data at 93.21") == 1
    own = Measurements(figures={"iou": 0.5})
    assert run_plots(({"validation_iou": 0.4},), own)[0].curves[-1].y == (0.5, 0.5)
    assert len(run_plots(report.rows, own)[0].curves) == 2, "of another figure there is no level"


def test_epochs_of_two_phases_follow_each_other() -> None:
    rows = tuple({"epoch": epoch, "train_loss": 1.0} for epoch in (0, 1, 0, 1))
    assert run_plots(rows)[0].curves[0].x == (1, 2, 3, 4)
    assert run_plots(()) == ()
