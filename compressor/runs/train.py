"""Train a model, from random weights or from a file's: `compressor train` and `compressor finetune`."""

import copy
from dataclasses import replace
from functools import partial

from torch import nn

from compressor.exporting.latency import profile
from compressor.primenet.network import PrimeNetwork
from compressor.primenet.settings import REPRESENTATION
from compressor.report import units
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.runs.exits import exit_parts
from compressor.runs.folder import RunFolder
from compressor.runs.jobs import FinetuneJob, TrainJob, flat
from compressor.runs.measuring import filters, layer_sizes, measure
from compressor.runs.replace import train_primenet
from compressor.runs.results import report_of, write_results
from compressor.runs.stages import Stage, Tell, note_all, silent
from compressor.runs.subject import Subject, open_subject
from compressor.runs.tuning import finetune_, step_for, validation_top1
from compressor.training import distributed
from compressor.training.batching import steps_per_epoch
from compressor.training.evaluate import evaluate
from compressor.training.events import NoteEvent
from compressor.training.loop import fit
from compressor.training.settings import DistillSettings, TrainSettings
from compressor.training.state import History, Saving


def train(job: TrainJob, tell: Tell = silent, *, resume: bool = False) -> Report:
    """Open, train, measure, write; returns the report that was written.

    With `resume` the run in the job's folder goes on from its last checkpoint.

    Raises:
        CompressorError: anything the user can mend.
    """
    folder = RunFolder(job.output, model=job.model.model, resume=resume)
    subject = _open(job, tell)
    assert subject.data is not None
    tell(Stage("measuring the model as it came"))
    if is_learning(subject.module):
        return _in_two_phases(replace(job, training=own_training(job)), subject, folder, tell)
    top1 = distributed.from_first(partial(_test_top1, subject))
    folder.begin(flat(job))

    saving = Saving(folder.path, phase=job.command.split()[1], resume=resume)
    history = _train(job, subject, saving, folder.recording(tell))

    tell(Stage("measuring the result"))
    after = measure(subject, latency=job.output.latency)
    before = replace(after, top1=top1)  # training changes no cost
    exits = exit_parts(subject, latency=job.output.latency)
    report = _report(job, subject, before, after)
    report = replace(report, rows=tuple(history.rows), notes=(*report.notes, *history.notes), **exits)
    return write_results(subject, report, folder, job.output, tell)


def _train(job: TrainJob, subject: Subject, saving: Saving, tell: Tell) -> History:
    """From random weights to the last epoch's; a network that came trained is never left worse than it was."""
    assert subject.data is not None
    distill = job.distilling if isinstance(job, FinetuneJob) else DistillSettings()
    teacher = copy.deepcopy(subject.module) if distill.distill else None
    step = step_for(subject.module, teacher, distill, job.training)
    if job.model.model is not None:
        before = validation_top1(subject) if step is None or teacher is not None else None  # a base alone says little
        return finetune_(subject, job.training, step, saving, tell, before)
    tell(Stage(f"training for {units.counted(job.training.epochs, 'epoch')}", job.training.epochs))
    return fit(subject.module, subject.data, job.training, step=step, on_event=tell, saving=saving)


def dry_run(job: TrainJob, tell: Tell = silent) -> Report:
    """The report of what `train` would do and to what; nothing is trained and written."""
    subject = _open(job, tell)
    data, training = subject.data, own_training(job) if is_learning(subject.module) else job.training
    assert data is not None
    cost = profile(subject.module, subject.example, layers=False)
    size = Measurements.of(cost, reasons=dict.fromkeys(("latency_ms", "top1"), "not measured in a dry run"))
    steps = steps_per_epoch(data, training)
    work = f"would train for {training.epochs} epochs of {steps} steps on {len(data.train):,} images"
    tell(NoteEvent(work))
    report = _report(job, subject, size, size)
    return replace(report, notes=(*report.notes, work))


def is_learning(module: nn.Module) -> bool:
    """Whether it is a PrimeNet that has not learnt: it is trained in two phases, with the paper's settings."""
    return isinstance(module, PrimeNetwork) and module.stage.block.learning


def own_training(job: TrainJob) -> TrainSettings:
    """The paper's settings, but for what a person chose."""
    chosen = vars(job.training).keys() & set(job.chosen)
    return replace(REPRESENTATION, **{name: getattr(job.training, name) for name in chosen})


def _in_two_phases(job: TrainJob, subject: Subject, folder: RunFolder, tell: Tell) -> Report:
    """Train a PrimeNet, measure, write; its cost changes too, since only what inference needs is left."""
    before, widths = measure(subject, latency=job.output.latency), filters(subject.module)
    folder.begin(flat(job))
    subject, learnt, part = train_primenet(subject, job.training, folder, tell)
    tell(Stage("measuring the result"))
    after = measure(subject, latency=job.output.latency)
    report = replace(
        _report(job, subject, before, after),
        layers=layer_sizes(widths, filters(subject.module)),
        rows=tuple(learnt.rows),
        sections=(part,),
    )
    return write_results(subject, report, folder, job.output, tell)


def _test_top1(subject: Subject) -> float:
    assert subject.data is not None
    return evaluate(subject.module, subject.data.test, subject.data).top1


def _open(job: TrainJob, tell: Tell) -> Subject:
    tell(Stage("opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, job.training.device)
    note_all(subject.notes, tell)
    return subject


def _report(job: TrainJob, subject: Subject, before: Measurements, after: Measurements) -> Report:
    widths = filters(subject.module)
    return report_of(
        job,
        subject,
        before,
        after,
        layers=layer_sizes(widths, widths),
        notes=tuple(subject.notes),
    )
