"""A step that learns from a teacher beside the labels."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import UsageError
from compressor.training.evaluate import first_output
from compressor.training.loop import backward
from compressor.training.microbatches import Step
from compressor.training.settings import DistillSettings


def distilling(teacher: nn.Module, settings: DistillSettings) -> Step:
    """A step whose loss is (1 - weight) * cross-entropy + weight * T^2 * KL(teacher || student), both softened by T.

    The teacher, on the model's device, is put into eval mode and never changed otherwise.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", section 2.

    Raises UsageError for a weight outside 0..1 or a temperature of 0 or below.
    """
    weight, temperature = settings.distill_weight, settings.distill_temperature
    if not 0 <= weight <= 1:
        raise UsageError(f"distill_weight={weight} must lie between 0 and 1")
    if temperature <= 0:
        raise UsageError(f"distill_temperature={temperature} must be above 0")
    teacher.eval().requires_grad_(False)

    def step(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted = functional.log_softmax(first_output(teacher(x)).float() / temperature, dim=1)
        scores = first_output(model(x)).float()
        given = functional.log_softmax(scores / temperature, dim=1)
        imitation = functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2
        loss = (1 - weight) * functional.cross_entropy(scores, y) + weight * imitation
        backward(loss)
        return loss.detach(), (scores.detach().argmax(1) == y).sum()

    return step
