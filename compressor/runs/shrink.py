"""The cheapest network that keeps a promise, found within a time: `compressor shrink`.

A sweep whose next target follows from what the validation images said of those before it: the smallest share of the
work that they let pass is halved in on, with blocks and channels where channels alone do not pass. Then, as long as
there is time, INT8 of the best sizes, exits in the network as it came, and another criterion. Which result can be
promised is decided in the end, on images put aside.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from compressor.errors import CompressorError
from compressor.exporting.onnx import export_onnx
from compressor.exporting.package import finish
from compressor.graph.blocks import find_blocks
from compressor.pruning.settings import PruneSettings
from compressor.report import units
from compressor.report.manifest import MANIFEST, WEIGHTS, read_manifest
from compressor.report.measurements import Certificate
from compressor.report.progress import counted
from compressor.report.report import Report
from compressor.report.run_comparison import Point, RunComparison
from compressor.report.runs import Timed, compare_runs
from compressor.routing.settings import TUNED_TRAINING
from compressor.runs.compare import time_files
from compressor.runs.estimate import estimate
from compressor.runs.folder import MODEL, ONNX, PACKAGE, SETTINGS, read_settings, refuse_deleting
from compressor.runs.jobs import RouteJob, ShrinkJob, job_of_method
from compressor.runs.models import open_model, save_model
from compressor.runs.promise import Judge
from compressor.runs.results import quantize
from compressor.runs.run import planned
from compressor.runs.settings import PromiseSettings
from compressor.runs.several import Cell, attempted, begin, carry_out, checked, common
from compressor.runs.stages import Callback, Stage, silent
from compressor.runs.subject import Subject, card_of
from compressor.training.data import Data
from compressor.training.events import NoteEvent

_CELLS = 6  # runs that the time is divided by
_MOST_EPOCHS = 20  # of one run; more change little
_CLOSE = 0.05  # share of the range within which no further target is tried
_SEARCH = 0.6  # of the time, once a target is passed; the rest is for other ways to make it cheaper
_DEEPER = "mixed"  # which takes blocks, too, where channels alone do not pass
_RIVAL = "taylor"  # the criterion that is tried besides block OBS
_QUANTIZED = 2  # sizes that are tried in INT8
_TIMED_IMAGES = 20


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
    """Try targets, then other ways, until the time is over; the cheapest network that keeps the promise is then in the
    folder itself.

    Called again in its folder it goes on with the runs that are not done, within a time of its own.

    Raises:
        UsageError: the folder holds something else.
        FileError, DataError: files cannot be read or written.
        CompressorError: every run failed.
        Interrupted: a signal came.
    """
    start = time.perf_counter()
    folder, settings = checked(job)
    refuse_deleting(job.model.model, (folder / MODEL, folder / ONNX, *(folder / PACKAGE).glob("*")))
    judge = Judge(job)
    epochs, decided = _epochs(job, folder, judge.subject, tell)
    lock = begin(folder, settings)
    tried = Tried(job, folder, judge, epochs, tell, start)
    tell(NoteEvent(f"every run trains for {units.counted(tried.epochs, 'epoch')}"))
    subject, search = judge.subject, Search.of(job.target_ms)
    blocks = isinstance(subject.example, Tensor) and find_blocks(subject.module, subject.example).found
    first = search.target
    while not search.over(first) and (not tried.done or tried.has_time(_SEARCH if tried.passing() else 1)):
        passed = tried.run(_pruning(job, search.target, epochs), decided if search.target == first else None)
        if not passed and blocks and tried.has_time():
            passed = tried.run(_pruning(job, search.target, epochs, _DEEPER))
        if search.high == search.target and not passed:
            break  # not even what was asked for
        search.told(passed)
    passing = sorted(tried.passing(), key=lambda name: tried.done[name].after.macs or 0)
    for name in passing[:_QUANTIZED] if job.output.onnx and job.output.latency else ():
        if tried.has_time():
            tried.quantize(name)
    ways = [_exits(job, epochs)] if isinstance(judge.data, Data) else []
    for way in [*ways, _pruning(job, search.high, epochs, _RIVAL)] if passing else ways:
        if tried.has_time():
            tried.run(way)
    if not tried.done:
        failed = "; ".join(f"{name}: {why}" for name, why in tried.failed.items())
        raise CompressorError(f"every run failed: {failed}")
    compared = tried.decided()
    compared.save(folder)
    lock.release()
    return compared


@dataclass
class Tried:
    """What was tried so far, and how long the longest of it took."""

    job: ShrinkJob
    folder: Path
    judge: Judge
    epochs: int
    tell: Callback
    start: float
    done: dict[str, Report] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)  # in INT8 -> of which run
    failed: dict[str, str] = field(default_factory=dict)
    longest: float = 0.0

    def has_time(self, share: float = 1.0) -> bool:
        """Whether another run ends within this share of the time."""
        assert self.job.time.for_ is not None
        return time.perf_counter() - self.start + self.longest < share * self.job.time.for_

    def passing(self) -> list[str]:
        """Runs that lose no more than they may on validation images."""
        assert self.job.promise.max_drop is not None
        return [name for name in self.done if self.judge.drop(name) <= self.job.promise.max_drop]

    def run(self, cell: Cell, decided: Mapping[str, Any] | None = None) -> bool:
        """Whether a run, carried out or done already, loses no more than it may on validation images."""
        name, like = str(self.folder / cell.name), self.judge.subject
        self._attempt(cell.name, lambda: carry_out(cell, Path(name), self.job, self.tell, like, decided))
        if cell.name not in self.failed:
            self.done[name] = Report.load(name)
        return name in self.passing()

    def quantize(self, run: str) -> None:
        """A run's network in INT8."""
        place = Path(f"{run}-int8")
        if self.job.output.overwrite or not (place / MANIFEST).exists():
            subject = replace(self.judge.subject, data=self.judge.data, opened=open_model(Path(run) / MODEL))
            self._attempt(place.name, lambda: quantize(subject, self.done[run], place, self.tell))
        if place.name not in self.failed:
            self.packages[str(place)] = run

    def _attempt(self, name: str, do: Callable[[], object]) -> None:
        began = time.perf_counter()
        self.tell(NoteEvent(f"run {len(self.done) + len(self.packages) + len(self.failed) + 1}: {name}"))
        why = attempted(name, do, self.folder, self.tell)
        self.failed |= {} if why is None else {name: why}
        self.longest = max(self.longest, time.perf_counter() - began)

    def decided(self) -> RunComparison:
        """All that was tried side by side, in milliseconds where they are wanted, and the cheapest that is promised."""
        job, judge = self.job, self.judge
        names, timed = [*self.done, *self.packages], None
        if job.output.latency and job.output.onnx:
            self.tell(Stage("timing all networks in turn"))
            timed = self._timed(names)
        costs = timed.milliseconds if timed else {name: self.done[name].after.macs or 0 for name in names}
        self.tell(Stage("looking for the cheapest that keeps the promise"))
        for name in (MODEL, ONNX):  # of an earlier call
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / PACKAGE, ignore_errors=True)
        chosen, certificate = judge.cheapest({name: costs[name] for name in names})
        reports = {name: self._on_half(name, report) for name, report in self.done.items()}
        compared = compare_runs(reports, self.failed, timed)
        points = [*compared.points, *(self._point(name, timed) for name in self.packages)]
        points.sort(key=lambda point: (-(point.macs or 0), point.run))
        if chosen is not None:
            self._leave(chosen, certificate)
        return replace(compared, points=tuple(points), promised=chosen, certificate=certificate)

    def _on_half(self, name: str, report: Report) -> Report:
        """A run that put no images aside, with its figures on those that the others were measured on."""
        if report.settings.get("max_drop") is not None:
            return report
        figure, judge = self.judge.data.figure, self.judge
        before = report.before.scored(figure, {figure.name: judge.figure()})
        after = report.after.scored(figure, {figure.name: judge.figure(name)})
        return replace(report, before=before, after=after, variants={})

    def _point(self, name: str, timed: Timed | None) -> Point:
        """A package as a point of the comparison."""
        manifest, of = read_manifest(Path(name)), self.done[self.packages[name]]
        exits = manifest.exits[0]
        return Point(
            run=name, method="int8", main=self.judge.figure(name), figure=self.judge.data.figure, macs=exits.macs,
            params=exits.params, file_bytes=sum(manifest.files[each]["bytes"] for each in (ONNX, WEIGHTS)),
            latency=None if timed is None else timed.milliseconds[name], epochs=self.epochs, seed=of.seed,
        )  # fmt: skip

    def _timed(self, names: list[str]) -> Timed:
        subject, data = self.judge.subject, self.judge.data
        images = data.examples(data.validation, _TIMED_IMAGES)
        real = images.cpu().numpy() if isinstance(images, Tensor) else None
        with TemporaryDirectory() as scratch:
            files = {name: Path(name) / ONNX for name in self.packages}
            modules = {name: open_model(Path(name) / MODEL).module for name in names if name not in files}
            timed = {str(self.job.model.model): subject.module, **modules}
            for number, (name, module) in enumerate(counted("exporting networks to time", timed.items(), len(timed))):
                files[name] = Path(scratch) / f"{number}.onnx"
                export_onnx(module, subject.example, files[name])
            return time_files(files, subject.example, real)

    def _leave(self, chosen: str, certificate: Certificate) -> None:
        """The chosen network and its ONNX file in the folder itself, or its package, with what is promised of it."""
        subject = self.judge.subject
        if chosen in self.packages:
            shutil.copytree(chosen, self.folder / PACKAGE)
            manifest = read_manifest(self.folder / PACKAGE)
            finish(self.folder / PACKAGE, replace(manifest, certificate=certificate.to_json(), files={}))
            return
        opened = open_model(Path(chosen) / MODEL)
        measured = {**opened.measurements, "certificate": certificate.to_json()}
        save_model(replace(opened, measurements=measured), self.folder / MODEL, overwrite=True)
        if self.job.output.onnx:
            self.tell(Stage("exporting to ONNX and comparing ONNX Runtime with torch"))
            small = replace(subject, opened=replace(opened, measurements=measured))
            card, images = card_of(small), small.real_images
            export_onnx(opened.module, small.example, self.folder / ONNX, check_inputs=images, card=card)


def _epochs(job: ShrinkJob, folder: Path, like: Subject, tell: Callback) -> tuple[int, dict[str, Any]]:
    """How many leave time for several runs, those of runs that are there already; and what the first is to do."""
    assert job.time.for_ is not None
    begun = [] if job.output.overwrite else sorted(folder.glob(f"obs-*/{SETTINGS}"))
    if begun:
        return int(read_settings(begun[0].parent)["epochs"]), {}
    tell(Stage("trying a few steps of training"))
    tried = _pruning(job, Search.of(job.target_ms).target, 1).job
    trial = planned(tried, like)
    decided, found = trial.structure(), estimate(trial)
    if not found.epoch_seconds:
        return 0, decided
    spare = job.time.for_ / _CELLS - found.fixed_seconds
    return max(0, min(_MOST_EPOCHS, int(spare / found.epoch_seconds))), decided


def _pruning(job: ShrinkJob, target: float, epochs: int, method: str = "obs") -> Cell:
    name = f"{method}-{target:.3f}" if job.target_ms is None else f"{method}-{target:.3g}ms"
    given: dict[str, Any] = {"target_macs" if job.target_ms is None else "target_ms": target, "method": method}
    choice, training = PruneSettings(**given, seed=job.training.seed), replace(job.training, epochs=epochs)
    kind = job_of_method(method)
    return Cell(name, kind(**_shared(job, name), choice=choice, training=training, command="compressor prune"))


def _exits(job: ShrinkJob, epochs: int) -> Cell:
    """The network as it came with early exits; its threshold is chosen on validation images and promises nothing."""
    shared = {**_shared(job, "exits"), "promise": PromiseSettings()}
    shared.pop("distilling")
    training = replace(TUNED_TRAINING, epochs=max(1, epochs), seed=job.training.seed, device=job.training.device)
    return Cell("exits", RouteJob(**shared, training=training, command="compressor route"))


def _shared(job: ShrinkJob, name: str) -> dict[str, Any]:
    shared = common(job, name)
    return {**shared, "output": replace(shared["output"], latency=False, onnx=False)}
