"""How long a run will take on this machine and the most memory it needs: its own middle, tried for two seconds."""

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from compressor.errors import UsageError
from compressor.graph.tensors import device_of
from compressor.profiling.latency import BUDGET_SECONDS
from compressor.report import units
from compressor.runs.folder import RunFolder
from compressor.runs.stages import PartEvent, PeriodEvent, PeriodStep, RunEvent
from compressor.training.evaluate import evaluating
from compressor.training.events import BatchEvent, EpochEvent
from compressor.training.interrupt import Interrupted
from compressor.training.task import Task, called

_SECONDS = 2.0  # of training, and of every stage in parts, that are timed
_LATENCIES = 4  # of a model: batch 1 and a larger one, on torch and on ONNX Runtime
_FILES_SECONDS = 4.0  # to export to ONNX, compare, and draw the page of a small network


@dataclass(frozen=True)
class Estimate:
    """What a run will take, roughly."""

    seconds: float  # wall time, from the opened model to the written report
    fixed_seconds: float  # of them, all but training
    peak_bytes: int | None  # of the process, or of the GPU; None where the system does not count it
    epoch_seconds: float | None = None  # of one epoch of training, where any was seen


class Enough(Exception):
    """The pace is known."""


class Pace:
    """Hears a run, and stops it when it knows how fast it is."""

    def __init__(self) -> None:
        self.parts_seconds = 0.0  # of stages that come in parts, the rest of a stage predicted from its first parts
        self.period_seconds: list[float] = []  # of every change of structure
        self.saw_an_epoch = False
        self._first: tuple[float, float] | None = None  # time and place in epochs of the first event
        self._last: tuple[float, float] | None = None
        self._part: float | None = None
        self._step = 0.0

    def tell(self, event: RunEvent) -> None:
        """Note the time; raises Enough."""
        now = time.perf_counter()
        match event:
            case PartEvent(done=done, total=total):
                self._part = now if self._part is None or done == 0 else self._part
                self.parts_seconds = (now - self._part) * total / max(done, 1)
                if done and now - self._part > _SECONDS:
                    raise Enough
            case PeriodStep():
                self._step = now
            case PeriodEvent():
                self.period_seconds.append(now - self._step)
            case BatchEvent():
                self._at(now, event.epoch + event.batch / event.batches)
            case EpochEvent():
                self.saw_an_epoch = True
                self._at(now, event.row["epoch"] + 1.0)

    def _at(self, now: float, place: float) -> None:
        now -= sum(self.period_seconds)
        self._first = self._first or (now, place)
        self._last = (now, place)
        if now - self._first[0] > _SECONDS and place > self._first[1]:
            raise Enough

    @property
    def began(self) -> float:
        """When the first event of training came."""
        assert self._first is not None
        return self._first[0]

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds of an epoch, changes of structure apart; None where nothing was trained."""
        if self._first is None or self._last is None or self._last[1] <= self._first[1]:
            return None
        return (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])


def estimate(planned: Any) -> Estimate:
    """Try the middle of a planned `runs.run.Run`, whose network is not to be used afterwards; nothing of the user's is
    touched.
    """
    run = copy.copy(planned)
    run.notes, run.rows, run.facts = list(planned.notes), [], dict(planned.facts)
    output, pace, data = run.job.output, Pace(), run.data
    image_seconds = _image_seconds(run.subject.module, data)
    tested, validated = len(data.test), len(data.validation)
    seconds = time.perf_counter() - run.began
    with TemporaryDirectory() as folder:
        run.folder = RunFolder(replace(output, out=str(Path(folder) / "run")))
        run.folder.path.mkdir()
        run.tell = run.record = pace.tell
        start = time.perf_counter()
        try:
            run.change()
            seconds += time.perf_counter() - start
        except Enough:
            seconds += pace.parts_seconds
        run.shorten()
        start = time.perf_counter()
        try:
            run.train()
        except Enough:
            pass
        except Interrupted as stop:  # whose checkpoint is of a trial
            raise Interrupted(stop.signal, "stopped") from stop
    epoch_seconds = None
    if pace.epoch_seconds is not None:
        looks = 0 if pace.saw_an_epoch else validated * image_seconds
        epoch_seconds = pace.epoch_seconds + looks
        seconds += pace.began - start
    if pace.period_seconds:
        seconds += run.changes() * sum(pace.period_seconds) / len(pace.period_seconds)
    seconds += 2 * (tested * image_seconds + (_LATENCIES * BUDGET_SECONDS if output.latency else 0.0))
    fixed = seconds + _FILES_SECONDS
    trained = run.epochs() * (epoch_seconds or 0.0)
    return Estimate(fixed + trained, fixed, peak_bytes(run.subject.device), epoch_seconds)


def epochs_within(seconds: float, runs: Sequence[Estimate], tried: float = 0.0) -> int:
    """For how many epochs of each there is time, of which trying them took its part.

    Raises:
        UsageError: not for one, or nothing is trained.
    """
    epoch = sum(each.epoch_seconds or 0.0 for each in runs)
    if not epoch:
        raise UsageError("nothing is trained here, so `for_` has nothing to fit: leave it out, or give epochs")
    fixed = tried + sum(each.fixed_seconds for each in runs)
    epochs = int((seconds - fixed) / epoch)
    if epochs < 1:
        least = units.duration(fixed + epoch)
        every = "a run does" if len(runs) == 1 else f"{len(runs)} runs do"
        raise UsageError(f"one epoch, with all that {every} besides, takes about {least} here: give `for_` more")
    return epochs


def _image_seconds(module: nn.Module, data: Task) -> float:
    """Seconds that evaluating one image, or one batch of a user's task, takes."""
    device = device_of(module)
    layout = device.type == "cpu" and data.takes_channels_last(module)
    pair = next(data.passing(data.test, None, device, layout))
    with evaluating(module), torch.no_grad():
        called(module, pair[0])
        start = time.perf_counter()
        called(module, pair[0])
    return (time.perf_counter() - start) / data.count_in(pair)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that was in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
