"""What one batch does to a detachable network: every model forward, the sum of their losses backward.

Reference: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks", section 2.3, equation 1.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compressor.errors import UsageError
from compressor.exits.settings import DetachSettings
from compressor.training.loop import backward
from compressor.training.microbatches import Step
from compressor.training.task import Task


def multi_model_step(
    task: Task, exits: int, settings: DetachSettings | None = None, label_smoothing: float = 0.0
) -> Step:
    """The step that trains a base and its `exits` sub-models together, each by the task's loss.

    The losses are back-propagated one after another into the same gradients, which gives those of their sum while the
    activations of one model at a time are held. The loss it returns is the sum, the right answers are the base's.
    Beyond the paper: `loss_weights`, and `distill`, which lets sub-models follow the base's outputs on the same batch.

    Raises UsageError for weights of another number and for a share of distillation outside 0..1.
    """
    settings = settings or DetachSettings()
    weights = settings.loss_weights or (1.0,) * (exits + 1)
    if len(weights) != exits + 1 or min(weights) < 0 or weights[0] <= 0:
        raise UsageError(
            f"loss weights {', '.join(f'{w:g}' for w in weights)}: give {exits + 1}, the base's (above 0) first, then "
            "one for each sub-model"
        )
    if not 0 <= settings.distill <= 1 or settings.distill_temperature <= 0:
        raise UsageError(
            f"distill is {settings.distill:g} and has to be a share in 0..1, distill_temperature is "
            f"{settings.distill_temperature:g} and has to be above 0"
        )

    def step(model: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        losses, right, wanted = [], None, None
        for exit, weight in enumerate(weights):
            way = AtExit(model, exit)
            loss, counted = task.loss(way, x, y, label_smoothing)
            if exit == 0:
                right, wanted = counted, tree_map(lambda leaf: leaf.detach(), way.gave)
            elif settings.distill:
                imitation = task.imitation(way.gave, wanted, settings.distill_temperature)
                loss = torch.lerp(loss, imitation, settings.distill)
            backward(weight * loss)
            losses.append(weight * loss.detach())
        return torch.stack(losses).sum(), right

    return step


class AtExit:
    """One model of a network that has several, as a loss calls it; `gave` is what it gave last."""

    def __init__(self, model: nn.Module, exit: int) -> None:
        self.model, self.exit, self.gave = model, exit, None

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.gave = self.model(*arguments, exit=self.exit, **keywords)
        return self.gave

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
