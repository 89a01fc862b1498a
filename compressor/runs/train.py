"""Train a model, from random weights or from a file's: `compressor train` and `compressor finetune`."""

import copy
from dataclasses import replace

from torch import nn

from compressor.primenet.network import PrimeNetwork
from compressor.primenet.settings import REPRESENTATION
from compressor.report import units
from compressor.report.measurements import Measurements
from compressor.runs.exits import exit_parts
from compressor.runs.job import FinetuneJob, TrainJob
from compressor.runs.replace import train_primenet
from compressor.runs.run import Run
from compressor.runs.stages import Stage
from compressor.runs.subject import Subject
from compressor.runs.tuning import finetune_, on_validation, step_for
from compressor.training import distributed
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.settings import DistillSettings, TrainSettings


class TrainRun(Run[TrainJob]):
    """Training alone; a PrimeNet that has not learned is trained in its two phases."""

    learning: bool

    def plan(self) -> None:
        """Whether the network has a training of its own."""
        self.learning = is_learning(self.subject.module)
        if self.learning:
            self.job = replace(self.job, training=own_training(self.job))

    def predicted(self) -> tuple[Measurements, Measurements]:
        """Training changes no cost."""
        training = self.job.training
        steps = self.data.steps(training)
        self.note(f"would train for {training.epochs} epochs of {steps} steps on {self.data.amount(self.data.train)}")
        return self.size, self.size

    def measured_before(self) -> Measurements:
        """The figures alone, unless training changes the costs, too: what only learning needs goes from a PrimeNet."""
        if self.learning:
            return super().measured_before()
        found = _test(self.subject)
        return Measurements().scored(self.data.figure, found)

    def train(self) -> None:
        """From random weights to the last epoch's; a network that came trained is never left worse than it was."""
        job, module = self.job, self.subject.module
        if self.learning:
            train_primenet(self)
            return
        distill = job.distilling if isinstance(job, FinetuneJob) else DistillSettings()
        teacher = copy.deepcopy(module) if distill.distill else None
        step = step_for(module, teacher, distill, job.training, self.data)
        saving = self.saving(phase=job.command.split()[1])
        if job.model.model is None:
            self.tell(Stage(f"training for {units.counted(job.training.epochs, 'epoch')}", job.training.epochs))
            self.learned(fit(module, self.data, job.training, step=step, on_event=self.record, saving=saving))
            return
        # The validation figure of the base alone says little of sub-models.
        before = on_validation(self.subject) if step is None or teacher is not None else None
        self.learned(finetune_(self.subject, job.training, step, saving, self.record, before))

    def measured_after(self, before: Measurements) -> tuple[Measurements, Measurements]:
        """With a row for every sub-model of a detachable network."""
        before_as_it_came, after = super().measured_after(before)
        if self.learning:
            return before_as_it_came, after
        self.facts |= exit_parts(self.subject, latency=self.job.output.latency)
        return replace(after, top1=before.top1, figures=before.figures), after


def is_learning(module: nn.Module) -> bool:
    """Whether it is a PrimeNet that has not learned: it is trained in two phases, with the paper's settings."""
    return isinstance(module, PrimeNetwork) and module.stage.block.learning


def own_training(job: TrainJob) -> TrainSettings:
    """The paper's settings, but for what a person chose."""
    chosen = vars(job.training).keys() & set(job.chosen)
    return replace(REPRESENTATION, **{name: getattr(job.training, name) for name in chosen})


@distributed.by_first
def _test(subject: Subject) -> dict[str, float]:
    assert subject.data is not None
    return evaluate(subject.module, subject.data.test, subject.data).figures
