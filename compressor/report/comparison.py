"""The before -> after table as texts, the same for the terminal and the page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from compressor.report import units
from compressor.report.measurements import Figure, Measurements

_NOTICEABLE = 1.05  # as fast; less lies within what two measurements differ by


@dataclass(frozen=True)
class Line:
    """One row: a measurement before and after, and the change."""

    label: str
    before: str
    after: str
    change: str
    better: bool | None = None  # None: nobody can say, or it is about the same
    main: bool = False  # the figure that the network is for: always shown


@dataclass(frozen=True)
class Comparison:
    """The rows, and below them why something is missing and how latency was measured."""

    lines: tuple[Line, ...]
    remarks: tuple[str, ...]


def compare(before: Measurements, after: Measurements, *, larger: bool = False) -> Comparison:
    """Both sides of a report; with `larger` also the latency of the larger batch."""
    lines: list[Line] = []
    missing: dict[str, list[str]] = {}
    figure = _figure(before, after)
    for label, key, value, write in _measured(before, after, larger):
        old, new = value(before), value(after)
        sides = [_reason(before, key)] if old is None else [before.reasons.get(key)]
        sides += [_reason(after, key)] if new is None else [after.reasons.get(key)]
        for reason in dict.fromkeys(each for each in sides if each is not None):
            if label.partition(",")[0] not in missing.setdefault(reason, []):
                missing[reason].append(label)
        lines.append(_line(label, old, new, write, figure if key == "top1" else None))
    remarks = [f"{', '.join(labels)}: {reason}" for reason, labels in missing.items()]
    return Comparison(tuple(lines), (*remarks, *_latency_remarks(after)))


def answers(before: Measurements, after: Measurements, round_to: int | str | None = None) -> list[tuple[str, bool]]:
    """What a run came to, a line each: what got smaller, what got faster, what it cost; and whether that is good."""
    said = []
    if before.macs and after.macs and before.macs != after.macs:
        span = f"{units.macs(before.macs)} to {units.macs(after.macs)}"
        costs = f"{units.ratio(before.macs, after.macs)} of the MACs ({span})"
        if before.params and after.params:
            costs += f", {units.ratio(before.params, after.params)} of the parameters"
        said.append((costs, after.macs < before.macs))
    old, new = (_timing("onnxruntime")(side) for side in (before, after))
    if said and old is not None and new is not None:
        times = f"{units.milliseconds(old)} to {units.milliseconds(new)}"
        if old / new > _NOTICEABLE:
            said.append((f"{old / new:.2f} times as fast in ONNX Runtime: {times}", True))
        else:
            said.append((f"not faster in ONNX Runtime: {times}{_help(round_to)}", False))
    figure, was, now = after.figure, before.main, after.main
    if now is not None:
        told = f"test {figure.label} {figure.write(now)}"
        if was is not None:
            told = f"test {figure.label} {figure.write(was)} to {figure.write(now)} ({figure.change(was, now)})"
        told += f" on {after.seen}" if after.seen else ""
        said.append((told, was is None or figure.gain(was, now) > -1))
    if after.certificate is not None:
        said.append((after.certificate.words(), after.certificate.kept))
    return said


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
    figure = _figure(before, after)
    yield f"test {figure.label}", "top1", lambda side: side.main, figure.write
    yield "MACs", "macs", lambda side: side.macs, units.macs
    yield "parameters", "params", lambda side: side.params, units.amount
    yield "file size", "file_bytes", lambda side: side.file_bytes, units.size
    for engine, name in units.ENGINES.items():
        key = f"latency_ms.{engine}"
        yield f"latency {name}", key, _timing(engine), units.milliseconds
        timings = [_engine(side, engine) for side in (before, after)]
        batch = next((timing["larger"]["batch"] for timing in timings if timing and timing.get("larger")), None)
        if larger and batch is not None:
            yield f"latency {name}, batch {batch}", key, _timing(engine, "larger"), units.milliseconds
    yield "MACs (thop)", "macs_thop", lambda side: side.macs_thop, units.macs


def _figure(before: Measurements, after: Measurements) -> Figure:
    """The main figure, by whichever side has one."""
    return after.figure if after.main is not None else before.figure


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


def _line(
    label: str, before: float | None, after: float | None, write: Callable[[float], str], figure: Figure | None
) -> Line:
    change, better = "", None
    if before is not None and after is not None:
        change = units.ratio(before, after) if figure is None else figure.change(before, after)
        saved = (before - after) / (before or 1) / (_NOTICEABLE - 1)
        gain = saved if figure is None else figure.gain(before, after)
        better = None if abs(gain) < 1 else gain > 0
    return Line(
        label,
        before=units.or_nothing(before, write),
        after=units.or_nothing(after, write),
        change=change,
        better=better,
        main=figure is not None,
    )


def _latency_remarks(side: Measurements) -> Iterator[str]:
    timing = _engine(side, "torch") or _engine(side, "onnxruntime")
    if timing is not None:
        threads = f", {units.counted(timing['threads'], 'thread')}" if timing.get("threads") else ""
        # A network whose time depends on the image is timed on many, and has a mean.
        what = "mean over test images" if "mean" in timing else "median of repeated runs"
        yield f"latency: {what}, batch {timing['batch']}{threads}"
