"""A run, told once: open, plan, measure, change, train, measure, report, export, check.

A verb brings its plan and its middle: a subclass of `Run` in its own file, which its job names.
"""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import nn

from compressor.errors import CompressorError, UsageError
from compressor.exporting.latency import profile
from compressor.loading.onnx_network import lacks_norms
from compressor.report import units
from compressor.report.environment import device_words, versions
from compressor.report.measurements import Certificate, LayerSize, Measurements, OnnxCheck
from compressor.report.report import Report
from compressor.runs import results
from compressor.runs.estimate import epochs_within, estimate
from compressor.runs.folder import ONNX, RunFolder
from compressor.runs.job import RunJob, flat
from compressor.runs.promise import Promise, put_aside
from compressor.runs.settings import FINETUNE
from compressor.runs.stages import Callback, Stage, silent
from compressor.runs.subject import Subject, open_subject
from compressor.settings import filled, settings_of
from compressor.training import distributed
from compressor.training.checkpoint import History, Saving
from compressor.training.data import AnySet
from compressor.training.events import NoteEvent
from compressor.training.task import Task

J = TypeVar("J", bound=RunJob)
UNMEASURED = dict.fromkeys(("macs_thop", "file_bytes", "latency_ms", "top1"), "not measured in a dry run")


def run(
    job: RunJob,
    tell: Callback = silent,
    *,
    resume: bool = False,
    like: Subject | None = None,
    decided: Mapping[str, Any] | None = None,
) -> Report:
    """Carry out what a job asks for; returns the report that was written.

    With `resume` the run in the job's folder goes on from its last checkpoint, to the result it would have had. One of
    several runs takes the images of `like`, opened by the same settings, and what a trial of it `decided`.

    Raises:
        CompressorError: anything the user can mend; the folder is as it was when the plan could not be carried out.
    """
    return run_class(type(job))(job, tell, like, decided).run(resume=resume)


def planned(job: RunJob, like: Subject | None = None) -> "Run[Any]":
    """A run that is opened and planned, to be tried; nothing is written. See `run` for `like`."""
    trial = run_class(type(job))(job, like=like)
    trial.open()
    trial.plan()
    return trial


def dry_run(job: RunJob, tell: Callback = silent) -> Report:
    """The report of what `run` would do, with the costs that the plan predicts; nothing is changed."""
    return run_class(type(job))(job, tell).predict()


def run_class(kind: type[RunJob]) -> "type[Run[Any]]":
    """The class that carries out such jobs."""
    file, name = kind.RUN.split(".")
    found: type[Run[Any]] = getattr(import_module(f"{__package__}.{file}"), name)
    return found


class Run(ABC, Generic[J]):
    """One run of a verb, from its job to its report."""

    NEEDS_DATA: ClassVar[bool] = True

    subject: Subject
    folder: RunFolder
    record: Callback  # hears what training does, and writes it down as well
    whole: nn.Module | None = None  # the network as it came, to be timed
    aside: AnySet | None = None  # images that nothing looks at but the promise
    promise: Promise | None = None  # what is asked of the result on them

    def __init__(
        self, job: J, tell: Callback = silent, like: Subject | None = None, decided: Mapping[str, Any] | None = None
    ) -> None:
        """Raises UsageError for settings that make no sense for any network, also where no reader saw them."""
        for room in vars(job).values():
            if is_dataclass(room) and not isinstance(room, type):
                filled(room, settings_of(room))
        self.job, self.tell = job, tell
        self.like = like  # opened by the same settings, with images that need not be read again
        self.decided = decided or {}  # the edits, by its checkpoint or by a trial of it
        self.began = time.perf_counter()
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []  # metrics, one row an epoch or period
        self.facts: dict[str, Any] = {}  # other fields of the report

    @abstractmethod
    def plan(self) -> None:
        """Find what will be done to the subject; nothing is changed and nothing written."""

    @abstractmethod
    def predicted(self) -> tuple[Measurements, Measurements]:
        """The costs before, and those that the plan leads to."""

    def change(self) -> None:
        """Carry out what the plan says before anything is trained or written; what cannot be done is refused here."""

    @abstractmethod
    def train(self) -> None:
        """The middle of the run: what is learned, and what is found out on the way."""

    def run(self, *, resume: bool = False) -> Report:
        """The whole story; see `run` above."""
        tell = self.tell
        if self.NEEDS_DATA and self.job.data is None:
            raise UsageError("`data` is missing: give digits (built in), folder:DIR, another set, or your own `task`")
        self.folder = RunFolder(self.job.output, model=self.job.model.model, resume=resume)
        self.decided = self.folder.decided() or self.decided
        if self.job.time.for_ is not None and not resume:
            self.fit_in(self.job.time.for_)
        self.open()
        job = self.job
        self.plan()
        tell(Stage("measuring the model as it came"))
        before, widths = self.measured_before(), self.widths()
        if self.aside is not None:
            self.promise = self.promised(self.aside)
        self.change()
        self.folder.begin(flat(job))
        self.record = self.folder.recording(tell)
        self.train()
        tell(Stage("measuring the result"))
        before, after = self.measured_after(before)
        if self.promise is not None:
            after = replace(after, certificate=self.certified(self.promise))
        report = self.report(before, after, self.layers(widths, self.widths()))
        return results.write_results(self.subject, report, self.folder, self.exported, tell)

    def predict(self) -> Report:
        """The report of a dry run."""
        self.open()
        self.plan()
        widths = self.widths()
        before, after = self.predicted()
        layers = self.facts.pop("layers", results.layer_sizes(widths, widths))
        if self.job.data is not None and distributed.size() == 1:  # processes that stop apart would wait for ever
            self.tell(Stage("trying a few steps of training"))
            self.facts["details"] = {**self.facts.get("details", {}), "estimate": asdict(estimate(self))}
        report = self.report(before, after, layers)
        self.leave_plan(report)
        return report

    def epochs(self) -> float:
        """Epochs of training in all, for an estimate: at the pace of those that come first."""
        return self.job.training.epochs

    def within(self, epochs: int) -> J:
        """The job with so many epochs in all."""
        return replace(self.job, training=replace(self.job.training, epochs=epochs))

    def fit_in(self, seconds: float) -> None:
        """Choose how many epochs are trained, by the pace of a few steps that are tried first.

        Raises:
            UsageError: there is no time for one, nothing is trained, or several processes train.
        """
        if distributed.size() > 1:  # which would stop trying at different steps
            raise UsageError("`for_` is for one process: give epochs under torchrun")
        self.tell(Stage("trying a few steps of training"))
        trial = planned(self.job)
        epochs = epochs_within(seconds, [estimate(trial)])
        self.job, self.like, self.decided = self.within(epochs), trial.like, trial.structure()
        self.note(f"{units.duration(seconds)} have time for {units.counted(epochs, 'epoch')} here")

    def structure(self) -> dict[str, Any]:
        """What was decided in planning, from which another run makes the same network; empty: it plans anew."""
        return {}

    def changes(self) -> float:
        """Changes of structure in all, for an estimate."""
        return 0

    def shorten(self) -> None:
        """Before the middle is tried for an estimate: whatever gets to its training sooner."""

    def leave_plan(self, report: Report) -> None:
        """What a dry run leaves in the folder that was named."""

    def open(self) -> None:
        """Open the model, and the data where there are any."""
        job = self.job
        self.tell(Stage("opening the model" if job.data is None else "opening the model and the data"))
        self.like = open_subject(job.model, job.data, job.loading, job.training.device, self.like)
        self.subject = self.like
        if job.promise.max_drop is not None and self.subject.data is not None:
            data, self.aside = put_aside(self.subject.data, job.loading.seed)
            self.subject = replace(self.subject, data=data)
        self.note(*self.subject.notes)
        usual = cast(float, FINETUNE.lr)
        if lacks_norms(self.subject.module) and job.training.lr == usual and "lr" not in job.chosen:
            self.job = replace(job, training=replace(job.training, lr=usual / 10))
            if job.data is not None and job.training.epochs:
                self.note(f"no norms are left in the network: it learns at {usual / 10:g}; `lr` sets another rate")

    def measured_before(self) -> Measurements:
        """The model as it came; how fast it is will be measured beside what becomes of it."""
        if self.job.output.latency:
            self.whole = copy.deepcopy(self.subject.module)
        found = results.measure(self.subject)
        self.tell(NoteEvent(results.in_words(found)))
        return found

    def measured_after(self, before: Measurements) -> tuple[Measurements, Measurements]:
        """Both sides of the report, once training is over."""
        after = results.measure(self.subject)
        if not self.job.output.latency:
            return before, after
        sides = {} if self.whole is None else {self.whole: before}
        *came, after = results.timed({**sides, self.subject.module: after}, self.subject.example, self.made())
        return (came[0] if came else before), after

    @cached_property
    def exported(self) -> results.Exported:
        """The check of the result's ONNX file, which lies in the folder then, or why there is none."""
        if not self.job.output.onnx:
            return None
        return results.export_result(self.subject, self.folder, self.tell)

    def made(self) -> Path | CompressorError | None:
        """The result's ONNX file, or why there is none; None where it was not asked for."""
        return self.folder / ONNX if isinstance(self.exported, OnnxCheck) else self.exported

    def promised(self, aside: Any) -> Promise:
        """How the network does on data that are put aside, before anything is changed."""
        return Promise.of(self.job.promise, aside, self.subject.module, self.data)

    def certified(self, promise: Promise) -> Certificate:
        """What can be promised of the result."""
        return promise.kept([self.subject.module], self.data)[1]

    def widths(self) -> dict[str, int]:
        """Filters of every layer, as the network stands."""
        return results.filters(self.subject.module)

    def layers(self, before: dict[str, int], after: dict[str, int]) -> tuple[LayerSize, ...]:
        """Filters of every layer before and after."""
        return results.layer_sizes(before, after)

    def report(self, before: Measurements, after: Measurements, layers: Sequence[LayerSize]) -> Report:
        """What was asked, done and found."""
        return Report(
            command=self.job.command,
            settings=flat(self.job),
            seed=self.job.training.seed,
            versions=versions(),
            device=device_words(self.subject.device),
            before=before,
            after=after,
            rows=tuple(self.rows),
            notes=tuple(self.notes),
            **{"layers": tuple(layers), **self.facts},
        )

    @property
    def data(self) -> Task:
        """The subject's task, for verbs that need one."""
        return cast(Task, self.subject.data)

    def saving(self, **more: Any) -> Saving:
        """Where training leaves its checkpoints."""
        return Saving(self.folder.path, resume=self.folder.resuming, **more)

    def note(self, *texts: str) -> None:
        """Report lines, and add them to the notes of the report."""
        for text in texts:
            self.tell(NoteEvent(text))
        self.notes += texts

    def learned(self, history: History) -> None:
        """Take over what a phase of training found; its notes are told already."""
        self.rows += history.rows
        self.notes += history.notes

    @cached_property
    def size(self) -> Measurements:
        """The costs of the subject as it stands, for a dry run."""
        return Measurements.of(profile(self.subject.module, self.subject.example, layers=False), reasons=UNMEASURED)
