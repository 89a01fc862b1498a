"""Fine-tune a network that is good already, and keep it as it was where fine-tuning makes it worse."""

import copy
from functools import partial

from torch import nn

from compressor.errors import UsageError
from compressor.exits.learning import step_of
from compressor.report import units
from compressor.report.measurements import TOP1, Figure
from compressor.runs.stages import Callback, Stage
from compressor.runs.subject import Subject
from compressor.training import distributed
from compressor.training.checkpoint import History, Saving
from compressor.training.evaluate import evaluate
from compressor.training.events import NoteEvent
from compressor.training.loop import distilling, fit
from compressor.training.microbatches import Step
from compressor.training.settings import DistillSettings, TrainSettings
from compressor.training.task import Task


def finetune_(
    subject: Subject, training: TrainSettings, step: Step | None, saving: Saving, tell: Callback, before: float | None
) -> History:
    """Train the subject's network in place; its weights stay as they are where the validation figure falls below
    `before`.

    Epoch 0 is a candidate like the last one. `before` None: not compared.
    """
    assert subject.data is not None
    tell(Stage(f"fine-tuning for {units.counted(training.epochs, 'epoch')}", training.epochs))
    kept = copy.deepcopy(subject.module.state_dict())
    history = fit(subject.module, subject.data, training, step=step, on_event=tell, saving=saving)
    figure = subject.data.figure
    after = history.rows[-1].get(f"validation_{figure.name}") if history.rows else None
    if before is None or after is None or figure.drop(before, after) <= 0:
        return history
    subject.module.load_state_dict(kept)
    note = (
        f"fine-tuning took validation {figure.label} from {said(figure, before)} to {said(figure, after)}: the weights "
        "from before it are kept; try a smaller learning rate, more epochs or distillation"
    )
    tell(NoteEvent(note))
    history.notes.append(note)
    return history


def step_for(
    module: nn.Module, teacher: nn.Module | None, settings: DistillSettings, training: TrainSettings, task: Task
) -> Step | None:
    """What one batch does: follow the teacher beside the labels, train all exits of a detachable network, or (None)
    cross-entropy alone.

    Raises:
        UsageError: a detachable network is to be distilled, or a setting is out of its range.
    """
    own = step_of(module, task, training.label_smoothing)
    if teacher is None or not settings.distill:
        return own
    if own is not None:
        raise UsageError("a network with sub-models has losses of its own: leave out distill")
    return distilling(teacher, settings, task, training.label_smoothing)


def on_validation(subject: Subject) -> float:
    """The main figure on the validation data, the same in every process."""
    return distributed.from_first(partial(measured_here, subject))


def said(figure: Figure, value: float) -> str:
    """A figure in a sentence: "93.2%", "0.8123"."""
    return f"{value:.1%}" if figure.name == TOP1 else figure.write(value)


def measured_here(subject: Subject) -> float:
    """The same, by this process alone."""
    assert subject.data is not None
    return evaluate(subject.module, subject.data.validation, subject.data).main
