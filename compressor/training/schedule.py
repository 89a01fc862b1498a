"""The optimizer that the settings name, and its learning rate as a function of the place in the run."""

import math
from typing import Any

import torch
from torch import nn

from compressor.errors import ModelError, UsageError, first_line
from compressor.training.settings import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer over all parameters that require gradients.

    Raises UsageError for values that the optimizer does not take, ModelError where there is nothing to train.
    """
    kinds = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
    }
    own: dict[str, Any] = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {}
    own |= dict(settings.optimizer_arg)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("the model has no parameters to train: they are frozen or quantized, or there are none")
    try:
        optimizer: torch.optim.Optimizer = kinds[settings.optimizer](
            parameters, lr=start_lr(settings), weight_decay=settings.weight_decay, **own
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"{settings.optimizer}: {first_line(error)}") from error
    return optimizer


def start_lr(settings: TrainSettings) -> float:
    """The learning rate that the schedule scales."""
    if settings.lr is not None:
        return settings.lr
    return 0.05 if settings.optimizer == "sgd" else 0.001


def lr_at(settings: TrainSettings, epoch: float) -> float:
    """The learning rate at a fractional epoch, counted as `first_epoch` is.

    Warm-up is linear and reaches the full rate after `warmup_epochs` of this phase. Cosine falls to zero at the phase's
    end (Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts).
    """
    full, done = start_lr(settings), epoch - settings.first_epoch
    if done < settings.warmup_epochs:
        return full * done / settings.warmup_epochs
    match settings.schedule:
        case "constant":
            return full
        case "cosine":
            length = max(settings.epochs - settings.warmup_epochs, 1e-9)
            share = min((done - settings.warmup_epochs) / length, 1.0)
            return full * 0.5 * (1 + math.cos(math.pi * share))
        case "step":
            default = [settings.first_epoch + settings.epochs * share for share in (1 / 2, 3 / 4)]
            return full * settings.gamma ** sum(epoch >= milestone for milestone in settings.milestones or default)


def set_lr_(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group, times the group's own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
