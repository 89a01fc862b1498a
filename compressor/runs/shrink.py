"""The cheapest network that keeps a promise, found within a time: `compressor shrink`.

A sweep whose next target follows from what the validation images said of those before it: the smallest share of the
work that they let pass is halved in on. Which result can be promised is decided in the end, on images put aside.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compressor.errors import CompressorError, DataError, FileError
from compressor.exporting.onnx import export_onnx
from compressor.pruning.settings import PruneSettings
from compressor.report import units
from compressor.report.certificate import Certificate
from compressor.report.report import Report
from compressor.report.run_comparison import RunComparison
from compressor.report.runs import Timed, compare_runs
from compressor.runs.compare import time_files
from compressor.runs.estimate import estimate
from compressor.runs.folder import MODEL, ONNX
from compressor.runs.jobs import PruneJob, ShrinkJob
from compressor.runs.lock import FolderLock
from compressor.runs.models import open_model, save_model
from compressor.runs.promise import Judge
from compressor.runs.prune import PruneRun
from compressor.runs.stages import Callback, Stage, silent
from compressor.runs.subject import card_of
from compressor.runs.sweep import Cell, begin, carry_out, common
from compressor.training.events import NoteEvent
from compressor.training.interrupt import Interrupted

_CELLS = 6  # runs that the time is divided by
_MOST_EPOCHS = 20  # of one run; more change little
_CLOSE = 0.05  # share of the range within which no further target is tried


@dataclass
class Search:
    """Halving in on the smallest target that validation images let pass; `high` is passed, `low` is not."""

    high: float
    low: float = 0.0
    target: float = 0.0

    @classmethod
    def of(cls, target_ms: float | None) -> "Search":
        """Shares of the MACs, half of them first; or milliseconds, those that were asked for first."""
        return cls(1.0, target=0.5) if target_ms is None else cls(target_ms, target=target_ms)

    def told(self, passed: bool) -> None:
        """What became of the target."""
        if passed:
            self.high = self.target
        else:
            self.low = self.target
        self.target = (self.low + self.high) / 2

    def over(self, first: float) -> bool:
        """Whether another target would hardly change anything, or none is left."""
        return self.high - self.low < _CLOSE * first


def shrink(job: ShrinkJob, tell: Callback = silent) -> RunComparison:
    """Try targets until the time is over; the cheapest network that keeps the promise is then in the folder itself.

    Called again in its folder it goes on with the runs that are not done, within a time of its own.

    Raises:
        UsageError: the folder holds something else.
        FileError, DataError: files cannot be read or written.
        CompressorError: every run failed.
        Interrupted: a signal came.
    """
    most = job.promise.max_drop
    assert job.time.for_ is not None and most is not None
    start = time.perf_counter()
    folder = begin(job)
    lock = FolderLock(folder)
    judge = Judge(job)
    tell(Stage("trying a few steps of training"))
    epochs = _epochs(job)
    tell(NoteEvent(f"every run trains for {units.counted(epochs, 'epoch')}"))
    search, done, failed = Search.of(job.target_ms), dict[str, Report](), dict[str, str]()
    first, longest = search.target, 0.0
    while not search.over(first) and (not done or time.perf_counter() - start + longest < job.time.for_):
        cell = _cell(job, search.target, epochs)
        began = time.perf_counter()
        tell(NoteEvent(f"run {len(done) + len(failed) + 1}: {cell.name}"))
        try:
            carry_out(cell, folder / cell.name, job, tell)
            done[str(folder / cell.name)] = Report.load(folder / cell.name)
            passed = judge.drop(str(folder / cell.name)) <= most
        except Interrupted as stop:
            raise Interrupted(stop.signal, f"{stop}; with the others: compressor resume {folder}") from stop
        except (FileError, DataError):
            raise
        except CompressorError as error:
            failed[cell.name], passed = str(error), False
            tell(NoteEvent(f"{cell.name} failed: {error}"))
        longest = max(longest, time.perf_counter() - began)
        if search.high == search.target and not passed:
            break  # not even what was asked for
        search.told(passed)
    if not done:
        raise CompressorError(f"every run failed: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    tell(Stage("looking for the cheapest that keeps the promise"))
    chosen, certificate = judge.cheapest(done)
    timed = None if chosen is None else _leave(job, judge, chosen, certificate, tell)
    compared = replace(compare_runs(done, failed, timed), promised=chosen, certificate=certificate)
    compared.save(folder)
    lock.release()
    return compared


def _epochs(job: ShrinkJob) -> int:
    """How many of them leave time for several runs."""
    assert job.time.for_ is not None
    trial = PruneRun(_pruning(job, 0.5, 1, "trial"), silent)
    trial.open()
    trial.plan()
    found = estimate(trial)
    if not found.epoch_seconds:
        return 0
    spare = job.time.for_ / _CELLS - (found.seconds - found.epoch_seconds)
    return max(0, min(_MOST_EPOCHS, int(spare / found.epoch_seconds)))


def _cell(job: ShrinkJob, target: float, epochs: int) -> Cell:
    name = f"obs-{target:.3f}" if job.target_ms is None else f"obs-{target:.3g}ms"
    return Cell(name, _pruning(job, target, epochs, name))


def _pruning(job: ShrinkJob, target: float, epochs: int, name: str) -> PruneJob:
    shared = common(job, name)
    given: dict[str, Any] = {"target_macs" if job.target_ms is None else "target_ms": target}
    return PruneJob(
        **{**shared, "output": replace(shared["output"], latency=False, onnx=False)},
        choice=PruneSettings(**given, seed=job.training.seed),
        training=replace(job.training, epochs=epochs),
        command="compressor prune",
    )


def _leave(job: ShrinkJob, judge: Judge, chosen: str, certificate: Certificate, tell: Callback) -> Timed | None:
    """The chosen network and its ONNX file in the folder itself, with what is promised of it; and its time, where it is
    wanted, beside that of the network as it came.
    """
    folder, subject = Path(chosen).parent, judge.subject
    opened = open_model(Path(chosen) / MODEL)
    measured = {**opened.measurements, "certificate": certificate.to_json()}
    save_model(replace(opened, measurements=measured), folder / MODEL, overwrite=True)
    if not job.output.onnx:
        return None
    tell(Stage("exporting to ONNX and comparing ONNX Runtime with torch"))
    small = replace(subject, opened=opened)
    export_onnx(opened.module, small.example, folder / ONNX, check_inputs=small.real_images, card=card_of(small))
    if not job.output.latency:
        return None
    tell(Stage("timing both networks in turn"))
    with TemporaryDirectory() as scratch:
        whole = Path(scratch) / ONNX
        export_onnx(subject.module, subject.example, whole)
        return time_files({str(job.model.model): whole, chosen: folder / ONNX})
