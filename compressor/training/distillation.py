"""A step that learns from a teacher beside the task's own loss."""

from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.training.loop import backward
from compressor.training.microbatches import Step
from compressor.training.settings import DistillSettings
from compressor.training.task import Task, called


def distilling(teacher: nn.Module, settings: DistillSettings, task: Task, smoothing: float = 0.0) -> Step:
    """A step whose loss is (1 - weight) * the task's + weight * how far the outputs are from the teacher's.

    The teacher, on the model's device, is put into eval mode and never changed otherwise. Scores of classes are
    softened by the temperature (see `Data.imitation`); of a user's task all tensors that the model returns count.

    Raises UsageError for a weight outside 0..1 or a temperature of 0 or below.
    """
    weight, temperature = settings.distill_weight, settings.distill_temperature
    if not 0 <= weight <= 1:
        raise UsageError(f"distill_weight={weight} must lie between 0 and 1")
    if temperature <= 0:
        raise UsageError(f"distill_temperature={temperature} must be above 0")
    teacher.eval().requires_grad_(False)

    def step(model: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        given: list[Any] = []
        with torch.no_grad():
            wanted = called(teacher, x)
        hook = model.register_forward_hook(lambda _, __, outputs: given.append(outputs))
        try:
            own, right = task.loss(model, x, y, smoothing)
        finally:
            hook.remove()
        loss = (1 - weight) * own + weight * task.imitation(given[-1], wanted, temperature)
        backward(loss)
        return loss.detach(), right

    return step
