"""The before -> after table as texts, the same for the terminal and the page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from compressor.report import units
from compressor.report.measurements import Measurements
from compressor.report.units import NOTHING

_NOTICEABLE = 1.05  # as fast; less lies within what two measurements differ by


@dataclass(frozen=True)
class Line:
    """One row: a measurement before and after, and the change."""

    label: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class Comparison:
    """The rows, and below them why something is missing and how latency was measured."""

    lines: tuple[Line, ...]
    remarks: tuple[str, ...]


def compare(before: Measurements, after: Measurements, *, larger: bool = False) -> Comparison:
    """Both sides of a report; with `larger` also the latency of the larger batch."""
    lines: list[Line] = []
    missing: dict[str, list[str]] = {}
    for label, key, value, write in _measured(before, after, larger):
        old, new = value(before), value(after)
        sides = [_reason(before, key)] if old is None else [before.reasons.get(key)]
        sides += [_reason(after, key)] if new is None else [after.reasons.get(key)]
        for reason in dict.fromkeys(each for each in sides if each is not None):
            if label.partition(",")[0] not in missing.setdefault(reason, []):
                missing[reason].append(label)
        lines.append(_line(label, old, new, write))
    remarks = [f"{', '.join(labels)}: {reason}" for reason, labels in missing.items()]
    return Comparison(tuple(lines), (*remarks, *_latency_remarks(after)))


def speed(before: Measurements, after: Measurements, round_to: int | str | None = None) -> str | None:
    """Whether a network with fewer multiply-adds is faster in ONNX Runtime; None where that was not measured."""
    old, new = (_timing("onnxruntime")(side) for side in (before, after))
    if old is None or new is None or before.macs is None or after.macs is None or after.macs >= before.macs:
        return None
    times = (
        f"{units.milliseconds(old)} to {units.milliseconds(new)}, {units.ratio(before.macs, after.macs)} of the MACs"
    )
    if old / new > _NOTICEABLE:
        return f"{old / new:.2f} times as fast in ONNX Runtime: {times}"
    return f"not faster in ONNX Runtime: {times}{_help(round_to)}"


def _help(round_to: int | str | None) -> str:
    """What would make it faster, by the multiple of widths; methods that do not round (None) have no such flag."""
    if round_to is None:
        return ""
    if round_to != "auto":
        return "; --round-to auto makes widths that this chip's kernels fill"
    return "; try a smaller --target-macs, or --keep on the layers that additions tie together"


Value = Callable[[Measurements], float | None]


def _measured(
    before: Measurements, after: Measurements, larger: bool
) -> Iterator[tuple[str, str, Value, Callable[[float], str]]]:
    """Label, key of the reason, how to read the value, how to write it."""
    yield "MACs", "macs", lambda side: side.macs, units.macs
    yield "MACs (thop)", "macs_thop", lambda side: side.macs_thop, units.macs
    yield "parameters", "params", lambda side: side.params, units.amount
    yield "file size", "file_bytes", lambda side: side.file_bytes, units.size
    for engine, name in (("torch", "torch"), ("onnxruntime", "ONNX Runtime")):
        key = f"latency_ms.{engine}"
        yield f"latency {name}", key, _timing(engine), units.milliseconds
        timings = [_engine(side, engine) for side in (before, after)]
        batch = next((timing["larger"]["batch"] for timing in timings if timing and timing.get("larger")), None)
        if larger and batch is not None:
            yield f"latency {name}, batch {batch}", key, _timing(engine, "larger"), units.milliseconds
    yield "test top-1", "top1", lambda side: side.top1, units.percent


def _engine(side: Measurements, engine: str) -> dict[str, Any] | None:
    return (side.latency_ms or {}).get(engine)


def _timing(engine: str, part: str | None = None) -> Value:
    def milliseconds(side: Measurements) -> float | None:
        timing = _engine(side, engine)
        timing = timing.get(part) if timing and part else timing
        return None if timing is None else float(timing.get("mean", timing["median"]))

    return milliseconds


def _reason(side: Measurements, key: str) -> str:
    general = key.split(".")[0]
    return side.reasons.get(key) or side.reasons.get(general) or "not measured"


def _line(label: str, before: float | None, after: float | None, write: Callable[[float], str]) -> Line:
    change = ""
    if before is not None and after is not None:
        change = units.points(before, after) if write is units.percent else units.ratio(before, after)
    return Line(
        label,
        before=NOTHING if before is None else write(before),
        after=NOTHING if after is None else write(after),
        change=change,
    )


def _latency_remarks(side: Measurements) -> Iterator[str]:
    timing = _engine(side, "torch") or _engine(side, "onnxruntime")
    if timing is not None:
        threads = f", {units.counted(timing['threads'], 'thread')}" if timing.get("threads") else ""
        # A network whose time depends on the image is timed on many, and has a mean.
        what = "mean over test images" if "mean" in timing else "median of repeated runs"
        yield f"latency: {what}, batch {timing['batch']}{threads}"
