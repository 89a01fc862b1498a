"""Several runs against each other, as data: what each network costs, how well it does, and which are on the front."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compressor.errors import UsageError
from compressor.reporting.report import Measurements, Report

if TYPE_CHECKING:
    import os
    from pathlib import Path

# Cost -> how it is called. Less is better of each, and more of top-1.
COSTS = {"macs": "MACs", "latency": "latency", "file_bytes": "file size"}
TIMED_ON = "onnxruntime"


@dataclass(frozen=True)
class Point:
    """One network of a run: what it costs and how well it does; None where that was not measured."""

    run: str  # the folder; for a network that a run started from, its file
    method: str  # "start" for a network that a run started from
    variant: str = ""  # a sub-model of the run's network
    top1: float | None = None  # fraction in 0..1 of the test images
    macs: int | None = None  # of one image; where images differ, the mean
    params: int | None = None
    file_bytes: int | None = None
    latency: float | None = None  # median milliseconds of one image, on ONNX Runtime where all were measured there
    epochs: int = 0  # of training that the run itself did
    seed: int | None = None


@dataclass(frozen=True)
class RunComparison:
    """Networks side by side; what is printed, drawn and written is made from this.

    Example:
        compared = compressor.compare(["runs/l1", "runs/adapnet"])
        compared.fronts["macs"]         # numbers of the points that no other beats at fewer MACs
        compared.save("runs/compared")  # comparison.html and comparison.json
    """

    points: tuple[Point, ...]  # by MACs, the largest first
    engine: str | None  # that latency was measured on
    in_turn: str | None = None  # the device on which all were timed in turn; None: each run's own figure
    notes: tuple[str, ...] = ()  # what makes the comparison less than fair
    failed: dict[str, str] = field(default_factory=dict)  # runs that came to nothing -> why

    @property
    def fronts(self) -> dict[str, tuple[int, ...]]:
        """For each cost the points, counted from 1, that no other point beats in cost and accuracy at once."""
        return {cost: tuple(index + 1 for index in front(self.points, cost)) for cost in COSTS}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "points": [{"number": number, **asdict(point)} for number, point in enumerate(self.points, 1)],
            "latency_engine": self.engine,
            "timed_in_turn_on": self.in_turn,
            "fronts": {cost: list(numbers) for cost, numbers in self.fronts.items()},
            "notes": list(self.notes),
            "failed": self.failed,
        }

    def save(self, folder: "str | os.PathLike[str]") -> "Path":
        """Write `comparison.html` and `comparison.json` into a folder; returns the path of the page.

        Raises:
            FileError: they cannot be written.
        """
        from compressor.reporting.runs_page import write_comparison

        return write_comparison(self, folder)

    def _repr_html_(self) -> str:
        """How a notebook shows the comparison."""
        from compressor.reporting.runs_page import comparison_fragment

        return comparison_fragment(self)


@dataclass(frozen=True)
class Timed:
    """Latencies that were measured together, the runs taking turns."""

    milliseconds: dict[str, float]  # run -> median of one image, on ONNX Runtime
    device: str  # in words


def front(points: Sequence[Point], cost: str) -> list[int]:
    """Indices of the Pareto-optimal points: no other is at most as dear and at least as good, and better in one.

    Points without that cost or without an accuracy are on no front.
    """
    known = [
        (index, value, point.top1)
        for index, point in enumerate(points)
        if (value := getattr(point, cost)) is not None and point.top1 is not None
    ]
    return [
        index
        for index, value, top1 in known
        if not any(other <= value and better >= top1 and (other < value or better > top1) for _, other, better in known)
    ]


def compare_runs(
    reports: Mapping[str, Report], failed: Mapping[str, str] | None = None, timed: Timed | None = None
) -> RunComparison:
    """The networks that runs came to, those they started from, and the sub-models of those that have some.

    Args:
        reports: name -> report, named by the runs' folders.
        failed: runs without a report -> why.
        timed: latencies that replace those of the reports.

    Raises:
        UsageError: there is nothing to compare.
    """
    if not reports:
        raise UsageError("there is no finished run to compare: give folders that hold a report.json")
    engine = _engine(reports) if timed is None else TIMED_ON
    points = [point for name, report in reports.items() for point in _results(name, report, engine)]
    starts = {(point.macs, point.params, point.top1): point for point in _starts(reports, engine)}
    points += starts.values()
    if timed is not None:
        new = timed.milliseconds
        points = [replace(each, latency=None if each.variant else new.get(each.run)) for each in points]
    points.sort(key=lambda point: (-(point.macs or 0), point.run))
    in_turn = None if timed is None else timed.device
    return RunComparison(tuple(points), engine, in_turn, tuple(_notes(reports, in_turn)), dict(failed or {}))


def _results(name: str, report: Report, engine: str | None) -> Iterator[Point]:
    method = str(report.settings.get("method") or report.settings.get("command") or _verb(report))
    epochs = sum("train_loss" in row for row in report.rows)
    yield _point(name, method, report.after, engine, epochs, report.seed)
    for variant, measured in report.variants.items():
        yield replace(_point(name, method, measured, engine, epochs, report.seed), variant=variant)


def _starts(reports: Mapping[str, Report], engine: str | None) -> Iterator[Point]:
    """The networks as they came; one that was trained from nothing has no accuracy worth showing."""
    for report in reports.values():
        model = report.settings.get("model")
        if model is not None:
            yield _point(str(model), "start", report.before, engine, 0, None)


def _point(run: str, method: str, measured: Measurements, engine: str | None, epochs: int, seed: int | None) -> Point:
    timing = (measured.latency_ms or {}).get(engine or "")
    return Point(
        run=run,
        method=method,
        top1=measured.top1,
        macs=measured.macs,
        params=measured.params,
        file_bytes=measured.file_bytes,
        latency=None if timing is None else float(timing["median"]),
        epochs=epochs,
        seed=seed,
    )


def _engine(reports: Mapping[str, Report]) -> str | None:
    """What all runs were timed on, else what any was; ONNX Runtime before torch."""
    found = [{name for name, timing in (each.after.latency_ms or {}).items() if timing} for each in reports.values()]
    for many in (set.intersection(*found), set.union(*found)):
        for engine in ("onnxruntime", "torch"):
            if engine in many:
                return engine
    return None


def _notes(reports: Mapping[str, Report], in_turn: str | None) -> Iterator[str]:
    for what, key in (("test sets", "data"), ("validation shares", "validation")):
        found = _values(reports, key)
        if len(found) > 1:
            yield f"the runs have different {what}, so their top-1 do not compare: {', '.join(sorted(found))}"
    devices = {report.device for report in reports.values() if report.after.latency_ms}
    if len(devices) > 1 and in_turn is None:
        yield f"latency was measured on different devices and does not compare: {'; '.join(sorted(devices))}"
    budgets = {sum("train_loss" in row for row in report.rows) for report in reports.values()}
    if len(budgets) > 1:
        yield f"the runs did not train equally long: {min(budgets)} to {max(budgets)} epochs"


def _values(reports: Mapping[str, Report], key: str) -> set[str]:
    return {str(report.settings[key]) for report in reports.values() if report.settings.get(key) is not None}


def _verb(report: Report) -> str:
    return (report.command.split() or ["run"])[-1]
