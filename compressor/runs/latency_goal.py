"""A target in milliseconds: plan by the times of layers, measure what the plan really takes, and plan again."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.exporting.latency import Compared, side_by_side
from compressor.exporting.layer_times import LayerTimes, layer_times
from compressor.exporting.onnx import export_onnx
from compressor.exporting.onnx_layers import without
from compressor.exporting.onnx_profile import with_one_image
from compressor.exporting.runtimes import ENGINES, check_runtime
from compressor.graph.channels import Channels
from compressor.graph.skeleton import skeleton
from compressor.profiling.timetable import Timetable
from compressor.pruning.oneshot import Ranked
from compressor.pruning.price import Goal, Price, scaled
from compressor.pruning.selection import Selection, goals_of, select
from compressor.pruning.settings import PruneSettings, in_time
from compressor.runs.settings import GoalSettings
from compressor.runs.stages import Callback, Stage, silent
from compressor.surgery import Plan, operate_

TOLERANCE = 0.05  # of the target: how near counts as met
_CORRECTIONS = 3


@dataclass(frozen=True)
class Attempt:
    """A plan, what it was predicted to take, and what it takes, in ms."""

    selection: Selection
    predicted: float
    found: Compared | None = None  # None: by another machine's times, or not yet


def selected(
    module: nn.Module,
    example: Any,
    channels: Channels,
    ranked: Ranked,
    choice: PruneSettings,
    tell: Callback = silent,
) -> Selection:
    """Choose what goes; where there is a target of time, so that the network takes that for one image in ONNX Runtime.

    On this machine each plan is timed beside the network as it came, since a machine is not always as fast; where it is
    off by more than a twentieth, the next plan asks for as much more or less, or between two that were. With a table of
    another machine the prediction is all there is.

    Raises:
        UsageError: the network is that fast already, or takes several inputs; and what `select` raises.
        ModelError: the target cannot be reached, or torch cannot export the network.
    """
    if not in_time(choice):
        return select(channels, ranked.scores, choice, ranked.curves)
    with _timed(module, example, channels, choice, tell) as (times, price, whole):
        before = price.whole()
        wanted = target = target_in_ms(choice, before)
        if choice.table is not None:
            return _noted(_planned(channels, ranked, choice, price, target), times, target)
        tried, fast, slow = [], 0.0, before  # what was wanted where the plan came out faster, and slower
        for number in range(1 + _CORRECTIONS):
            attempt = _planned(channels, ranked, choice, price, wanted)
            tell(Stage(f"timing plan {number + 1}, which should take {attempt.predicted:.3g} ms"))
            plan = attempt.selection.plan
            found = _beside(whole, module, example[:1], channels, plan, choice.threads, choice.runtime)
            ms = found.ratio * before
            tried.append((_off(ms, target), replace(attempt, found=replace(found, before=before, after=ms))))
            off = ms / target
            if abs(off - 1) <= TOLERANCE or not 0 < wanted / off < before:
                break
            fast, slow = (wanted, slow) if off < 1 else (fast, wanted)
            wanted = math.sqrt(fast * slow) if fast and slow < before else wanted / off
        return _noted(min(tried, key=lambda each: each[0])[1], times, target)


def goal_in_ms(
    module: nn.Module, example: Any, channels: Channels, choice: PruneSettings | GoalSettings
) -> Goal | None:
    """The target of time, for a method that goes on until it is met, and the milliseconds of one image by channels, by
    this machine's layers in the runtime or another's table; None where there is no such target.

    Raises:
        UsageError: the network takes several inputs, or is that fast already.
        ModelError: torch cannot export the network.
    """
    if not in_time(choice):
        return None
    with _timed(module, example, channels, choice) as (_, price, _):
        return Goal.at(price, target_in_ms(choice, price.whole()))


@contextmanager
def _timed(
    module: nn.Module,
    example: Any,
    channels: Channels,
    choice: PruneSettings | GoalSettings,
    tell: Callback = silent,
) -> Iterator[tuple[LayerTimes, Price, Path]]:
    """A network's layer times, the price by them, on this machine of what the whole network takes, and its graph, which
    is there as long.
    """
    check_timed(example, choice)
    given = None if choice.table is None else Timetable.read(Path(choice.table).expanduser())
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        file = Path(folder) / "before.onnx"
        tell(Stage("exporting the network as it came"))
        export_onnx(module, example[:1], file)
        tell(Stage("timing its layers"))
        times = layer_times(file, channels, threads=choice.threads, runtime=choice.runtime, given=given)
        price = times.price(channels)
        if given is None:
            whole = _compared((file, file), example[:1], choice.threads, choice.runtime).before
            price = scaled(price, whole / price.whole())  # what a profile adds to every operator taken out
        yield times, price, file


def check_timed(example: Any, choice: PruneSettings | GoalSettings) -> None:
    """Raise UsageError for what no time is measured of: several inputs, or a runtime that is not installed."""
    if not isinstance(example, Tensor):
        raise UsageError("a target of time is for models of one input")
    check_runtime("onnx" if choice.runtime == "onnxruntime" else choice.runtime)


def plan_latency(module: nn.Module, example: Tensor, channels: Channels, plan: Plan, threads: int) -> Compared:
    """Milliseconds of one image in ONNX Runtime before and after a plan that is not carried out, timed in turn.

    Raises ModelError where torch cannot export the network.
    """
    with tempfile.TemporaryDirectory(prefix="compressor-") as place:
        whole = Path(place) / "before.onnx"
        export_onnx(module, example[:1], whole)
        return _beside(whole, module, example[:1], channels, plan, threads, "onnxruntime")


def _compared(files: tuple[Path, Path], one: Tensor, threads: int, runtime: str) -> Compared:
    return Compared.of(side_by_side(files, tuple(one.shape), threads, runtime=runtime))


def _beside(
    whole: Path, module: nn.Module, one: Tensor, channels: Channels, plan: Plan, threads: int, runtime: str
) -> Compared:
    """The graph with its weights cut, or where that does not run, the edited network exported anew."""
    import onnx

    file = whole.with_name("after.onnx")
    onnx.save(without(with_one_image(onnx.load(whole)), channels, plan.removed), file)
    try:
        return _compared((whole, file), one, threads, runtime)
    except Exception:  # onnxruntime's exceptions share no class of their own
        edited = skeleton(module, real=True)
        operate_(edited, plan, channels)
        export_onnx(edited, one, file)
    return _compared((whole, file), one, threads, runtime)


def target_in_ms(choice: PruneSettings | GoalSettings, whole: float) -> float:
    """Milliseconds that the settings want of a network that takes so many. Raises UsageError for none."""
    wanted = [] if choice.target_ms is None else [choice.target_ms]
    wanted += [] if choice.speedup is None else [whole / max(choice.speedup, 1e-9)]
    if not min(wanted) > 0:
        raise UsageError(f"the target is {min(wanted):g} ms; give milliseconds for one image, such as 2.5")
    return min(wanted)


def _off(ms: float, target: float) -> tuple[bool, float]:
    return ms > target * (1 + TOLERANCE), abs(ms - target)


def _planned(channels: Channels, ranked: Ranked, choice: PruneSettings, price: Price, wanted: float) -> Attempt:
    goals = [*goals_of(channels, choice), Goal.at(price, wanted)]
    selection = select(channels, ranked.scores, choice, ranked.curves, goals)
    return Attempt(selection, price.without(selection.plan.removed))


def in_words(found: Compared, runtime: str, predicted: float) -> str:
    """A line on how fast a network is now, and was to be."""
    return (
        f"{found.after:.3g} ms for one image in {ENGINES[runtime].label} where it took {found.before:.3g} "
        f"({1 / found.ratio:.2f} times as fast, 90% of {1 / found.high:.2f} to {1 / found.low:.2f}); predicted were "
        f"{predicted:.3g} ms"
    )


def _noted(attempt: Attempt, times: LayerTimes, target: float) -> Selection:
    """The selection with what a user should know of its time."""
    notes = list(attempt.selection.notes)
    machine = times.table.machine
    if attempt.found is None:
        notes.append(f"{attempt.predicted:.3g} ms are predicted for {machine.chip}; nothing was timed here")
    else:
        found = attempt.found
        notes.append(in_words(found, machine.runtime.split()[0], attempt.predicted))
        if _off(found.after, target) > (False, TOLERANCE * target):
            notes.append(f"the target of {target:.3g} ms is not met within {TOLERANCE:.0%}")
    if not times.complete:
        notes.append("a minute was not enough to time all layers at all widths; the next run goes on with what lacks")
    return replace(attempt.selection, notes=tuple(notes))
