"""Several finished runs as one comparison: the networks they came to, and those they started from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from compressor.errors import UsageError
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.report.run_comparison import Point, RunComparison

TIMED_ON = "onnxruntime"


@dataclass(frozen=True)
class Timed:
    """Latencies that were measured together, the runs taking turns."""

    milliseconds: dict[str, float]  # run -> median of one image, on ONNX Runtime
    device: str  # in words


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
    starts = {(point.macs, point.params, point.main): point for point in _starts(reports, engine)}
    points += starts.values()
    if timed is not None:
        new = {**_as_the_start(reports, timed.milliseconds), **timed.milliseconds}
        points = [replace(each, latency=None if each.variant else new.get(each.run)) for each in points]
    points.sort(key=lambda point: (-(point.macs or 0), point.run))
    in_turn, named = None if timed is None else timed.device, _values(reports, "data")
    return RunComparison(
        tuple(points), engine, in_turn, tuple(_notes(reports, in_turn)), dict(failed or {}),
        data=named.pop() if len(named) == 1 else None,
    )  # fmt: skip


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


def _as_the_start(reports: Mapping[str, Report], timed: Mapping[str, float]) -> dict[str, float]:
    """The time of a start is that of a run which changed its weights only."""
    return {
        str(report.settings["model"]): timed[name]
        for name, report in reports.items()
        if name in timed and report.settings.get("model") and _costs(report.before) == _costs(report.after)
    }


def _costs(measured: Measurements) -> tuple[int | None, int | None]:
    return measured.macs, measured.params


def _point(run: str, method: str, measured: Measurements, engine: str | None, epochs: int, seed: int | None) -> Point:
    timing = (measured.latency_ms or {}).get(engine or "")
    return Point(
        run=run,
        method=method,
        main=measured.main,
        figure=measured.figure,
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
    figures = {report.after.figure.label for report in reports.values() if report.after.main is not None}
    if len(figures) > 1:
        yield f"the runs are measured by different figures, which do not compare: {', '.join(sorted(figures))}"
    for what, key in (("test sets", "data"), ("validation shares", "validation")):
        found = _values(reports, key)
        if len(found) > 1:
            named = "/".join(sorted(figures)) or "figures"
            yield f"the runs have different {what}, so their {named} do not compare: {', '.join(sorted(found))}"
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
