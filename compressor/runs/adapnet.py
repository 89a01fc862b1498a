"""AdapNet from a network and data to a smaller network and its report: `compressor prune --method adapnet`.

Reference: Ahmadluei, Faez, Masoumi, "Adaptive Pruning of Convolutional Neural Network".
"""

from dataclasses import replace
from functools import partial

from compressor.errors import ModelError
from compressor.exporting.latency import profile
from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.pruning.adapnet.method import AdapNet
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.runs.adapnet_section import section
from compressor.runs.concept_pictures import galleries
from compressor.runs.folder import RunFolder
from compressor.runs.goals import Guard, Target
from compressor.runs.jobs import AdaptJob, flat
from compressor.runs.measuring import filters, in_words, layer_sizes, measure
from compressor.runs.periods import Periods
from compressor.runs.phases import Phases, check, check_period, hints
from compressor.runs.results import report_of, write_results
from compressor.runs.stages import Stage, Tell, note_all, silent
from compressor.runs.subject import Subject, open_subject, refuse_routed
from compressor.runs.training_phases import TrainingPhases
from compressor.training.batching import steps_per_epoch
from compressor.training.evaluate import evaluate
from compressor.training.events import NoteEvent


def adapt(job: AdaptJob, tell: Tell = silent, *, resume: bool = False) -> Report:
    """Open, measure, train while the structure changes, fine-tune, measure again, write; returns the written report.

    With `resume` the run in the job's folder goes on from its last checkpoint, to what it would have come to.

    Raises:
        CompressorError: anything the user can mend.
    """
    folder = RunFolder(job.output, model=job.model.model, resume=resume)
    subject, periods, phases = _prepare(job, tell)
    assert subject.data is not None
    trained = job.model.model is not None
    training = TrainingPhases(subject.module, subject.data, periods, phases, job.distilling, trained)
    tell(Stage("measuring the model as it came"))
    before, widths = measure(subject, latency=job.output.latency), filters(subject.module)
    tell(NoteEvent(in_words(before)))
    folder.begin(flat(job))

    record = folder.recording(tell)
    periods.tell = record
    training.run(folder.path, record, resume=resume)

    tell(Stage("measuring the result"))
    after = measure(subject, latency=job.output.latency)
    edits = [row for plan in periods.plans for row in plan]
    report = replace(
        _report(job, subject, periods, before, after),
        layers=layer_sizes(widths, filters(subject.module)),
        edits=tuple(edits),
        rows=tuple(training.rows),
        sections=section(periods.rows, edits, galleries(periods.method.units.values())),
    )
    report = replace(report, notes=(*report.notes, *training.notes))
    missed = periods.target.shortfall(periods.channels)
    if missed is not None:
        tell(NoteEvent(missed))
        report = replace(report, refused={**report.refused, "target": missed})
    return write_results(subject, report, folder, job.output, tell)


def dry_run(job: AdaptJob, tell: Tell = silent) -> Report:
    """The report of what `adapt` would train and judge; what it will cut depends on the training and is not told."""
    subject, periods, phases = _prepare(job, tell)
    cost = profile(subject.module, subject.example, layers=False)
    reasons = dict.fromkeys(("file_bytes", "latency_ms", "top1"), "not measured in a dry run")
    size = Measurements.of(cost, reasons=reasons)
    open_ends = dict.fromkeys(("macs", "macs_thop", "params"), "AdapNet decides while it trains")
    report = _report(job, subject, periods, size, Measurements(reasons={**reasons, **open_ends}))
    widths, outlook = filters(subject.module), _outlook(periods, phases)
    note_all(outlook, tell)
    return replace(report, layers=layer_sizes(widths, widths), notes=(*report.notes, *outlook))


def _outlook(periods: Periods, phases: Phases) -> list[str]:
    """What would be trained and judged, in lines for the user."""
    method, settings = periods.method, phases.settings
    units = list(method.units.values())
    return [
        f"would train {phases.startup} epochs without changes, up to {settings.max_epochs} in which every "
        f"{method.lsep} steps the structure changes, and {settings.finetune_epochs} more",
        f"would judge {sum(unit.filters for unit in units)} filters in {len(units)} groups: "
        f"{', '.join(f'{unit.name} ({unit.filters})' for unit in units)}",
    ]


def _prepare(job: AdaptJob, tell: Tell) -> tuple[Subject, Periods, Phases]:
    """Open what the job names and look at it; nothing is changed and nothing written."""
    check(job.adapnet, job.goals)
    tell(Stage("opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, job.training.device)
    refuse_routed(subject, "prune")
    note_all(subject.notes, tell)
    data = subject.data
    assert data is not None
    phases = Phases.of(job.adapnet, job.training, trained=job.model.model is not None, fill=job.goals.fill)
    steps = steps_per_epoch(data, phases.training)
    check_period(job.adapnet, steps)
    note_all(hints(job.adapnet, subject.module), tell)
    tell(Stage("finding which channels belong together"))
    channels = capture(subject.module, subject.example, keep=job.keep, also=job.also)
    note_all(channels.notes, tell)
    method = AdapNet(job.adapnet, classes=len(data.classes), steps_per_epoch=steps, seed=job.training.seed)
    method.adopt(subject.module, channels)
    if not method.units:
        raise ModelError(f"there is nothing that AdapNet could change: {_reasons(channels, method)}")
    target = Target.of(job.goals, channels)
    top1 = partial(_top1, subject)
    periods = Periods(
        subject.module, channels, method, target, Guard(job.goals.max_drop, top1), tell, job.goals.round_to
    )
    return subject, periods, phases


def _top1(subject: Subject) -> float:
    assert subject.data is not None
    return evaluate(subject.module, subject.data.validation, subject.data).top1


def _reasons(channels: Channels, method: AdapNet, most: int = 4) -> str:
    reasons = {**channels.frozen, **method.locked}
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:most]) + more


def _report(job: AdaptJob, subject: Subject, periods: Periods, before: Measurements, after: Measurements) -> Report:
    method = periods.method
    return report_of(
        job,
        subject,
        before,
        after,
        frozen={**periods.channels.frozen, **method.locked},
        refused=dict(periods.refused),
        notes=(*subject.notes, *periods.channels.notes, *hints(job.adapnet, subject.module)),
    )
