"""The sentence that stands first: whether the result is faster."""

from dataclasses import replace

import pytest

from compressor.report.comparison import speed
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from tests.report.reports import full_report, timing


def measured(macs: int, milliseconds: float | None) -> Measurements:
    found = None if milliseconds is None else {"torch": timing(9.0), "onnxruntime": timing(milliseconds)}
    return Measurements(macs=macs, latency_ms=found)


def report(before: Measurements, after: Measurements, **settings: object) -> Report:
    return replace(full_report(), before=before, after=after, settings=settings)


def said_of(report: Report) -> str | None:
    return speed(report.before, report.after, report.settings.get("round_to"))


def test_faster_is_said_with_both_times_and_the_share_of_macs() -> None:
    said = said_of(report(measured(1000, 3.0), measured(500, 2.0)))
    assert said is not None and said.startswith("1.50 times as fast in ONNX Runtime: ") and "0.50x of the MACs" in said


@pytest.mark.parametrize(
    ("settings", "helps"), [({"round_to": 1}, "--round-to auto"), ({"round_to": "auto"}, "--target-macs")]
)
@pytest.mark.parametrize("after", [2.9, 4.0])
def test_what_is_not_faster_says_what_would_help(settings: dict[str, object], helps: str, after: float) -> None:
    said = said_of(report(measured(1000, 3.0), measured(500, after), **settings))
    assert said is not None and said.startswith("not faster") and helps in said


def test_flags_that_a_method_does_not_have_are_not_advised() -> None:
    """AdapNet, routing and the rest take no --round-to."""
    said = said_of(report(measured(1000, 3.0), measured(500, 3.0)))
    assert said is not None and said.startswith("not faster") and "--" not in said


@pytest.mark.parametrize("after", [measured(1000, 1.0), measured(500, None)])
def test_nothing_is_said_of_what_was_not_made_smaller_or_not_measured(after: Measurements) -> None:
    assert said_of(report(measured(1000, 3.0), after)) is None
