"""Prune a model in one shot and, with data, fine-tune it: `compressor prune`."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.pruning.oneshot import rank
from compressor.pruning.selection import Selection, select
from compressor.pruning.settings import check, in_time, looks_at_inputs, resolved
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.runs.criterion import criterion
from compressor.runs.exits import exit_parts
from compressor.runs.folder import RunFolder
from compressor.runs.jobs import PruneJob, flat
from compressor.runs.latency_goal import select_in_ms
from compressor.runs.measuring import filters, filters_after, in_words, layer_sizes, measure
from compressor.runs.oneshot import apply_plan_
from compressor.runs.plans import read_plan, write_plan
from compressor.runs.results import report_of, write_results
from compressor.runs.stages import PartEvent, Stage, Tell, note_all, silent
from compressor.runs.subject import Subject, calibration_inputs, open_subject, refuse_routed, score_batches
from compressor.runs.tuning import finetune_, step_for, validation_top1
from compressor.training import distributed
from compressor.training.events import NoteEvent
from compressor.training.recalibrate import recalibrate_
from compressor.training.state import History, Saving


@dataclass(frozen=True)
class Planned:
    """What would be pruned, of what."""

    subject: Subject
    channels: Channels
    selection: Selection
    inputs: Sequence[Tensor] = ()  # images to calibrate on, without labels


def prune(job: PruneJob, tell: Tell = silent, *, resume: bool = False) -> Report:
    """Open, measure, plan, cut, refit, fine-tune, measure again, write; returns the report that was written.

    With `resume` the fine-tuning of the run in the job's folder goes on from its last checkpoint; what comes before it
    is done again, to the same end.

    Raises:
        CompressorError: anything the user can mend; the folder is as it was when the plan could not be made.
    """
    folder = RunFolder(job.output, model=job.model.model, resume=resume)
    job = _resolved(job)
    planned = plan(job, tell)
    subject, selection = planned.subject, planned.selection
    tell(Stage("measuring the model as it came"))
    before, widths = measure(subject, latency=job.output.latency), filters(subject.module)
    tell(NoteEvent(in_words(before)))
    top1 = None if subject.data is None else validation_top1(subject)
    teacher = copy.deepcopy(subject.module) if job.distilling.distill else None
    tell(Stage(f"pruning {len(selection.plan.removed)} channels in {len(selection.plan.edits)} groups"))
    refit = _cut_(job, planned, tell)
    folder.begin(flat(job))
    history = _recover(job, subject, top1, teacher, folder, tell)

    tell(Stage("measuring the result"))
    after = measure(subject, latency=job.output.latency)
    report = replace(
        _report(job, planned, before, after),
        layers=layer_sizes(widths, filters(subject.module)),
        rows=() if history is None else tuple(history.rows),
        **exit_parts(subject, latency=job.output.latency),
    )
    report = replace(report, notes=(*report.notes, *refit, *(() if history is None else history.notes)))
    return write_results(subject, report, folder, job.output, tell)


def plan(job: PruneJob, tell: Tell = silent) -> Planned:
    """Open what the job names and choose what goes; nothing is changed and nothing written.

    Raises:
        CompressorError: the model or the data cannot be opened, or nothing can be pruned as asked.
    """
    check(job.choice, has_data=job.data is not None)
    own = criterion(job.choice.method)
    tell(Stage("opening the model" if job.data is None else "opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, job.training.device)
    refuse_routed(subject, "prune")
    note_all(subject.notes, tell)
    tell(Stage("finding which channels belong together"))
    channels = capture(subject.module, subject.example, keep=job.choice.keep, also=job.choice.also)
    note_all(channels.notes, tell)
    if job.plan is not None:
        return Planned(subject, channels, read_plan(job.plan, channels))
    batches = score_batches(subject, job.choice.score_images, job.choice.seed)
    choice = job.choice
    looks = looks_at_inputs(choice)
    inputs = calibration_inputs(subject, job.choice.seed) if looks else []
    if looks:
        tell(Stage("measuring what every channel is worth"))
    ranked = distributed.from_first(lambda: rank(subject.module, channels, choice, batches, inputs, own))
    if not in_time(choice):
        selection = select(channels, ranked.scores, choice, ranked.curves)
    else:
        selection = select_in_ms(
            subject.module, subject.example, channels, ranked, choice,
            tell=lambda text: tell(Stage(text)), progress=lambda done, total: tell(PartEvent("layers", done, total)),
        )  # fmt: skip
    note_all(selection.notes, tell)
    return Planned(subject, channels, selection, inputs)


def _resolved(job: PruneJob) -> PruneJob:
    return replace(job, choice=resolved(job.choice, has_inputs=job.data is not None))


def dry_run(job: PruneJob, tell: Tell = silent) -> Report:
    """The report of what `prune` would do, with the costs that the plan predicts; nothing is changed.

    Where the job names a folder the plan is written there, and nothing else.
    """
    job = _resolved(job)
    planned = plan(job, tell)
    channels, selection = planned.channels, planned.selection
    widths = filters(planned.subject.module)
    reason = dict.fromkeys(("macs_thop", "file_bytes", "latency_ms", "top1"), "not measured in a dry run")
    before = Measurements(macs=channels.macs(), params=channels.params(), reasons=reason)
    after = Measurements(macs=selection.macs, params=selection.params, reasons=reason)
    predicted = filters_after(widths, channels, selection.plan.removed)
    if job.output.out is not None:
        write_plan(Path(job.output.out).expanduser(), selection, channels, overwrite=job.output.overwrite)
    return replace(_report(job, planned, before, after), layers=layer_sizes(widths, predicted))


def _cut_(job: PruneJob, planned: Planned, tell: Tell) -> tuple[str, ...]:
    """Carry out the plan and fit what is left to the network as it was; returns what to report.

    By least squares, without data on images made up; where that is not wished or impossible and there are data, by
    batch-norm statistics measured anew.
    """
    subject = planned.subject
    inputs = planned.inputs or calibration_inputs(subject, job.choice.seed) if job.choice.reconstruct else ()
    _, found = apply_plan_(
        subject.module, planned.selection.plan, planned.channels, subject.example, inputs=inputs,
        synthetic=job.choice.reconstruct and subject.data is None,
        progress=lambda done, total: tell(PartEvent("least squares", done, total)),
    )  # fmt: skip
    note_all(found.words(), tell)
    if subject.data is not None and not found.layers:
        tell(Stage("recalibrating batch norm"))
        recalibrate_(subject.module, subject.data.train, subject.data, seed=job.loading.seed)
    distributed.alike_(subject.module)
    return found.words()


def _recover(
    job: PruneJob, subject: Subject, before: float | None, teacher: nn.Module | None, folder: RunFolder, tell: Tell
) -> History | None:
    """Weights trained further, where there are data; what training did, if any.

    `before` is the network's validation top-1 as it came, `teacher` a copy of that network to distill from.
    """
    if subject.data is None or before is None:
        tell(NoteEvent("no --data: nothing is trained and no accuracy measured; fine-tune before use"))
        return None
    top1 = validation_top1(subject)
    tell(NoteEvent(f"validation top-1: {before:.1%} before, {top1:.1%} right after pruning{_seen(job, subject)}"))
    if job.training.epochs == 0:
        return None
    saving = Saving(folder.path, phase="finetune", resume=folder.resuming)
    step = step_for(subject.module, teacher, job.distilling, job.training)
    candidate = top1 if step is None or teacher is not None else None  # the base alone says little of sub-models
    return finetune_(subject, job.training, step, saving, folder.recording(tell), candidate)


def _seen(job: PruneJob, subject: Subject) -> str:
    """A remark on validation figures of a network that was trained elsewhere: on all training images, as a rule."""
    seen = "; it has probably been trained on these images, so only the test figures tell what pruning costs"
    return "" if subject.opened.history or job.model.model is None else seen


def _report(job: PruneJob, planned: Planned, before: Measurements, after: Measurements) -> Report:
    return report_of(
        job,
        planned.subject,
        before,
        after,
        seed=job.choice.seed,
        edits=tuple(planned.selection.plan.rows()),
        frozen=planned.channels.frozen,
        refused=dict(planned.selection.refused),
        notes=(*planned.subject.notes, *planned.channels.notes, *planned.selection.notes),
    )
