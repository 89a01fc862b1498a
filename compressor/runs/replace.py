"""Replace the early stage of a network by PrimeNet's block and train both: `compressor replace`."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compressor.errors import DataError, ModelError
from compressor.exits.detachable import Detaching
from compressor.exporting.latency import profile
from compressor.primenet.learning import TrainingMemory, refuse_single, training_memory
from compressor.primenet.network import KIND, PrimeNetwork
from compressor.primenet.phases import train_in_two_phases
from compressor.primenet.place import Early, Place
from compressor.primenet.section import remarks, section
from compressor.profiling.costs import macs_of
from compressor.report import units
from compressor.report.measurements import LayerSize, Measurements
from compressor.runs.jobs import ReplaceJob
from compressor.runs.models import transformed
from compressor.runs.results import filters
from compressor.runs.run import UNMEASURED, Run
from compressor.runs.stages import Stage
from compressor.runs.subject import Subject, check_tells, refuse_routed
from compressor.training.classes import count_outputs
from compressor.training.events import NoteEvent
from compressor.training.task import Task

MEASURED_PIXELS = 1 << 20  # of the images in the step whose memory is measured: no more, however large the batch


class ReplaceRun(Run[ReplaceJob]):
    """The block in the place of the early stage, trained by its own losses with everything behind it."""

    early: Early
    place: Place

    def plan(self) -> None:
        """Find the stage that goes."""
        job, subject, data = self.job, self.subject, self.data
        refuse_single(min(job.training.batch_size, job.primenet.retrain_batch_size))
        check_tells(subject, "replace", "labels")
        refuse_routed(subject, "replace the early stage of")
        if isinstance(subject.module, Detaching):
            raise ModelError(
                "the network has sub-models, which would be lost: replace its early stage first, then detach"
            )
        self.tell(Stage("looking for the stage to replace"))
        outputs = count_outputs(subject.module, data)
        x, y = next(data.passing(data.validation))
        if int(data.labels(y).max()) >= outputs:
            raise DataError(f"{data.name}: class {int(data.labels(y).max())}, and the network gives {outputs} scores")
        self.early = Early(subject.module, tuple(x.shape[1:]), outputs, job.primenet)
        self.place = self.early.choose() if job.until is None else self.early.place(self.early.find(job.until))
        self.note(_place_in_words(self.place))

    def predicted(self) -> tuple[Measurements, Measurements]:
        """With the scales that will be left, as far as they are known."""
        network, entropy = self.early.replaced(self.place.cut), self.job.primenet.inference == "entropy"
        scales = network.stage.block.scales
        network.stage.block.settle_(scales if entropy else (scales[len(scales) // 2],))
        cost = profile(network, self.subject.example, layers=False)
        after = Measurements(macs=cost.macs, params=cost.params, reasons=UNMEASURED)
        self.note(*remarks(self.size, after, self.job.primenet.fit))
        if not entropy:
            self.note("the cost after is that of the middle scale; training chooses")
        self.facts["layers"] = self.layers(self.widths(), filters(network))
        return self.size, after

    def epochs(self) -> float:
        """Of both phases."""
        return super().epochs() + self.job.primenet.retrain_epochs

    def within(self, epochs: int) -> ReplaceJob:
        """Those of the other phase are as many as before."""
        return super().within(max(1, epochs - self.job.primenet.retrain_epochs))

    def change(self) -> None:
        """Put the block in; a network that could not be saved is refused."""
        network = self.early.replaced(self.place.cut)
        self.subject = replace(self.subject, opened=transformed(self.subject.opened, network, network.step()))

    def train(self) -> None:
        """Both phases."""
        train_primenet(self)

    def measured_after(self, before: Measurements) -> tuple[Measurements, Measurements]:
        """With a remark where the network did not become cheaper."""
        before, after = super().measured_after(before)
        said = remarks(before, after, self.job.primenet.fit)
        self.note(*said)
        [part] = self.facts["sections"]
        self.facts["sections"] = (replace(part, text=" ".join((part.text, *said))),)
        return before, after

    def layers(self, before: dict[str, int], after: dict[str, int]) -> tuple[LayerSize, ...]:
        """Layers that went, with nothing after; the block's, with nothing before; and the others, whose names grew."""
        found = [LayerSize(name, count, after.get(f"rest.{name}", 0)) for name, count in before.items()]
        kept = {f"rest.{name}" for name in before}
        return (*found, *(LayerSize(name, 0, count) for name, count in after.items() if name not in kept))


def train_primenet(run: Run[Any]) -> None:
    """Both phases for a run whose network is a PrimeNetwork that is learning; its subject becomes what is left."""
    subject, data, training = run.subject, run.data, run.job.training
    network, opened = subject.module, subject.opened
    assert isinstance(network, PrimeNetwork)
    costs = {scale: _stage_macs(network, scale, subject.example.shape[1:]) for scale in network.stage.block.scales}
    run.tell(Stage("measuring the memory that a step of training takes"))
    memory = _memory(subject, data, network, training.batch_size)
    run.tell(Stage("training every scale by its own loss, and the rest behind them; then the rest alone"))
    learned = train_in_two_phases(network, data, training, on_event=run.record, saving=run.saving())
    run.tell(NoteEvent(f"kept for inference: {', '.join(f'{scale}x{scale}' for scale in learned.kept)}"))
    earlier = tuple(step for step in opened.steps if not _is_of_learning(step))
    run.subject = replace(subject, opened=replace(opened, steps=(*earlier, network.step())))
    run.rows += learned.rows
    run.facts["sections"] = (section(learned, costs, memory),)


def _is_of_learning(step: Mapping[str, Any]) -> bool:
    return step["kind"] == KIND and bool(step["learning"])


def _stage_macs(network: PrimeNetwork, scale: int, image: tuple[int, ...]) -> int:
    stage = copy.deepcopy(network.stage)
    stage.block.settle_((scale,))
    return macs_of(stage, image)


def _memory(subject: Subject, data: Task, network: PrimeNetwork, batch_size: int) -> TrainingMemory:
    count = min(batch_size, max(2, MEASURED_PIXELS // subject.example[0, 0].numel()))
    x, y = next(data.drawn(data.train, count, 0, subject.device, count))
    return training_memory(network, x, data.labels(y))


def _place_in_words(place: Place) -> str:
    costs = ", ".join(f"{scale}x{scale} {units.macs(macs)}" for scale, macs in place.block.items())
    cheaper = [f"{scale}x{scale}" for scale, macs in place.block.items() if macs < place.removed]
    text = f"the stage {place.where} goes, {units.macs(place.removed)}; with one scale the block takes {costs}"
    if len(cheaper) == len(place.block):
        return text
    return f"{text}: MACs fall only if {' or '.join(cheaper)} stays" if cheaper else f"{text}: MACs will rise"
