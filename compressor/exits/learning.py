"""How a detachable network of either kind learns: its step, its optimizer, its statistics afterwards."""

import torch
from torch import nn

from compressor.errors import UsageError
from compressor.exits.cutting import Detaching
from compressor.exits.detachable import Detachable, with_own_statistics
from compressor.exits.losses import multi_model_step
from compressor.exits.nested import Nested
from compressor.exits.pairs import damped_sgd, shared_gradient_step
from compressor.exits.settings import DetachSettings
from compressor.training.microbatches import Step
from compressor.training.recalibrate import recalibrate_
from compressor.training.schedule import start_lr
from compressor.training.settings import TrainSettings
from compressor.training.task import Task


def training_of(
    model: Detaching, settings: DetachSettings, training: TrainSettings, task: Task
) -> tuple[Step, torch.optim.Optimizer | None]:
    """The step that trains all models together, and the optimizer where it is not the settings' usual one.

    The model has to be on its device. Raises UsageError for options that are out of range or of the other method.
    """
    if isinstance(model, Detachable):
        return multi_model_step(task, model.exits, settings, training.label_smoothing), None
    if settings.loss_weights or settings.distill:
        raise UsageError("NSN has a rule of its own for gradients: leave --loss-weights and --distill away")
    if training.optimizer != "sgd":
        raise UsageError(f"NSN has a momentum of its own: leave --optimizer {training.optimizer} away")
    optimizer = damped_sgd(model, start_lr(training), training.momentum)
    return shared_gradient_step(task, model, settings), optimizer


def step_of(module: nn.Module, task: Task, label_smoothing: float = 0.0) -> Step | None:
    """The step for a network that is detachable already; None for one that is not."""
    if isinstance(module, Detachable):
        return multi_model_step(task, module.exits, None, label_smoothing)
    return shared_gradient_step(task, module) if isinstance(module, Nested) else None


def recalibrated(model: Detaching, task: Task, seed: int = 0) -> Detaching:
    """The network with the statistics of every model measured anew; each has its own then."""
    if isinstance(model, Detachable):
        model = with_own_statistics(model)
    elif model.norms == "shared" and model.exits:
        raise UsageError("statistics that nested models share cannot fit all of them: leave `bn` shared out")
    for exit in range(model.exits + 1):
        recalibrate_(model.detach(exit), task.train, task, seed=seed)
    return model
