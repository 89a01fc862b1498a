"""Replace the early stage of a network by PrimeNet's block and train both: `compressor replace`."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from compressor.errors import ModelError
from compressor.exits.detachable import Detachable
from compressor.exits.nested import Nested
from compressor.exporting.latency import profile
from compressor.primenet.memory import TrainingMemory, training_memory
from compressor.primenet.network import KIND, PrimeNetwork
from compressor.primenet.phases import Learnt, train_in_two_phases
from compressor.primenet.place import Early, Place
from compressor.primenet.section import remarks, section
from compressor.profiling.macs import macs_of
from compressor.report import units
from compressor.report.measurements import LayerSize, Measurements
from compressor.report.report import Report
from compressor.report.sections import Section
from compressor.runs.folder import RunFolder
from compressor.runs.jobs import ReplaceJob, flat
from compressor.runs.measuring import filters, in_words, measure
from compressor.runs.models import transformed
from compressor.runs.results import report_of, write_results
from compressor.runs.stages import Stage, Tell, note_all, silent
from compressor.runs.subject import Subject, open_subject, refuse_routed
from compressor.training.batching import InputTransform
from compressor.training.evaluate import count_outputs
from compressor.training.events import NoteEvent
from compressor.training.settings import TrainSettings
from compressor.training.state import Saving

MEASURED_PIXELS = 1 << 20  # of the images in the step whose memory is measured: no more, however large the batch


@dataclass(frozen=True)
class Planned:
    """Which stage goes, of what."""

    subject: Subject
    early: Early
    place: Place


def replace_early(job: ReplaceJob, tell: Tell = silent, *, resume: bool = False) -> Report:
    """Open, measure, put the block in, train in two phases, measure again, write; returns the report that was written.

    With `resume` the training of the run in the job's folder goes on from its last checkpoint.

    Raises:
        CompressorError: anything the user can mend; the folder is as it was when the stage cannot be replaced.
    """
    folder = RunFolder(job.output, model=job.model.model, resume=resume)
    planned = plan(job, tell)
    widths = filters(planned.subject.module)
    tell(Stage("measuring the model as it came"))
    before = measure(planned.subject, latency=job.output.latency)
    tell(NoteEvent(in_words(before)))
    subject = _replaced(planned)
    folder.begin(flat(job))

    subject, learnt, part = train_primenet(subject, job.training, folder, tell)
    tell(Stage("measuring the result"))
    after = measure(subject, latency=job.output.latency)
    said = remarks(before, after, job.primenet.fit)
    note_all(said, tell)
    report = replace(
        _report(job, planned, before, after),
        layers=_layers(widths, filters(subject.module)),
        rows=tuple(learnt.rows),
        sections=(replace(part, text=" ".join((part.text, *said))),),
    )
    report = replace(report, notes=(*report.notes, *said))
    return write_results(subject, report, folder, job.output, tell)


def plan(job: ReplaceJob, tell: Tell = silent) -> Planned:
    """Open what the job names and find the stage that goes; nothing is changed and nothing written.

    Raises:
        CompressorError: the model or the data cannot be opened, or there is no such stage.
    """
    tell(Stage("opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, job.training.device)
    refuse_routed(subject, "replace the early stage of")
    note_all(subject.notes, tell)
    assert subject.data is not None
    if isinstance(subject.module, Detachable | Nested):
        raise ModelError("the network has sub-models, which would be lost: replace its early stage first, then detach")
    tell(Stage("looking for the stage to replace"))
    outputs = count_outputs(subject.module, subject.data)
    early = Early(subject.module, subject.data.input_shape, outputs, job.primenet)
    place = early.choose() if job.until is None else early.place(early.find(job.until))
    tell(NoteEvent(_place_in_words(place)))
    return Planned(subject, early, place)


def dry_run(job: ReplaceJob, tell: Tell = silent) -> Report:
    """The report of what `replace` would do; nothing is trained and written."""
    planned = plan(job, tell)
    reasons = dict.fromkeys(("macs_thop", "file_bytes", "latency_ms", "top1"), "not measured in a dry run")
    cost = profile(planned.subject.module, planned.subject.example, layers=False)
    before = Measurements(macs=cost.macs, params=cost.params, reasons=reasons)
    network = planned.early.replaced(planned.place.cut)
    scales = network.stage.block.scales
    network.stage.block.settle_(scales if job.primenet.inference == "entropy" else (scales[len(scales) // 2],))
    cost = profile(network, planned.subject.example, layers=False)
    after = Measurements(macs=cost.macs, params=cost.params, reasons=reasons)
    report = _report(job, planned, before, after)
    guess = "the cost after is that of the middle scale; training chooses" if job.primenet.inference == "static" else ""
    said = [text for text in (*remarks(before, after, job.primenet.fit), guess) if text]
    return replace(
        report,
        layers=_layers(filters(planned.subject.module), filters(network)),
        notes=(*report.notes, *said),
    )


def train_primenet(
    subject: Subject, training: TrainSettings, folder: RunFolder, tell: Tell
) -> tuple[Subject, Learnt, Section]:
    """Both phases for a subject whose module is a PrimeNetwork that is learning.

    Returns the subject as it is now, which a checkpoint can be made of, what was learnt, and its part of the report.
    """
    network, data, opened = subject.module, subject.data, subject.opened
    assert isinstance(network, PrimeNetwork) and data is not None
    costs = {scale: _stage_macs(network, scale, data.input_shape) for scale in network.stage.block.scales}
    tell(Stage("measuring the memory that a step of training takes"))
    memory = _memory(subject, network, training.batch_size)
    tell(Stage("training every scale by its own loss, and the rest behind them; then the rest alone"))
    saving = Saving(folder.path, resume=folder.resuming)
    learnt = train_in_two_phases(network, data, training, on_event=folder.recording(tell), saving=saving)
    tell(NoteEvent(f"kept for inference: {', '.join(f'{scale}x{scale}' for scale in learnt.kept)}"))
    earlier = tuple(step for step in opened.steps if not _is_of_learning(step))
    subject = replace(subject, opened=replace(opened, steps=(*earlier, network.step())))
    return subject, learnt, section(learnt, costs, memory)


def _is_of_learning(step: Mapping[str, Any]) -> bool:
    return step["kind"] == KIND and bool(step["learning"])


def _replaced(planned: Planned) -> Subject:
    """The subject with the block in the place of the stage.

    Raises:
        UsageError: the model could not be saved, for want of an architecture.
    """
    network = planned.early.replaced(planned.place.cut)
    return replace(planned.subject, opened=transformed(planned.subject.opened, network, network.step()))


def _stage_macs(network: PrimeNetwork, scale: int, image: tuple[int, ...]) -> int:
    stage = copy.deepcopy(network.stage)
    stage.block.settle_((scale,))
    return macs_of(stage, image)


def _memory(subject: Subject, network: PrimeNetwork, batch_size: int) -> TrainingMemory:
    assert subject.data is not None
    pixels = subject.data.input_shape[1] * subject.data.input_shape[2]
    count = min(batch_size, len(subject.data.train), max(2, MEASURED_PIXELS // pixels))
    images, labels = next(subject.data.train.read([torch.arange(count)], subject.device))
    return training_memory(network, InputTransform.of(subject.data, subject.device)(images), labels)


def _place_in_words(place: Place) -> str:
    costs = ", ".join(f"{scale}x{scale} {units.macs(macs)}" for scale, macs in place.block.items())
    cheaper = [f"{scale}x{scale}" for scale, macs in place.block.items() if macs < place.removed]
    text = f"the stage {place.where} goes, {units.macs(place.removed)}; with one scale the block takes {costs}"
    if len(cheaper) == len(place.block):
        return text
    return f"{text}: MACs fall only if {' or '.join(cheaper)} stays" if cheaper else f"{text}: MACs will rise"


def _layers(before: dict[str, int], after: dict[str, int]) -> tuple[LayerSize, ...]:
    """Layers that went, with nothing after; the block's, with nothing before; and the others, whose names grew."""
    found = [LayerSize(name, count, after.get(f"rest.{name}", 0)) for name, count in before.items()]
    kept = {f"rest.{name}" for name in before}
    return (*found, *(LayerSize(name, 0, count) for name, count in after.items() if name not in kept))


def _report(job: ReplaceJob, planned: Planned, before: Measurements, after: Measurements) -> Report:
    return report_of(
        job,
        planned.subject,
        before,
        after,
        notes=(*planned.subject.notes, _place_in_words(planned.place)),
    )
