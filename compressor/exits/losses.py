"""What one batch does to a detachable network: every model forward, the sum of their losses backward.

Reference: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks", section 2.3, equation 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import UsageError
from compressor.exits.settings import DetachSettings
from compressor.training.evaluate import first_output
from compressor.training.loop import AUXILIARY_WEIGHT, backward
from compressor.training.microbatches import Step


def multi_model_step(exits: int, settings: DetachSettings | None = None, label_smoothing: float = 0.0) -> Step:
    """The step that trains a base and its `exits` sub-models together.

    The losses are back-propagated one after another into the same gradients, which gives those of their sum while the
    activations of one model at a time are held. The loss it returns is the sum, the right answers are the base's.
    Beyond the paper: `loss_weights`, and `distill`, which lets sub-models follow the base's scores on the same batch
    (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", section 2).

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

    def step(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=x.device)
        right = torch.zeros((), dtype=torch.int64, device=x.device)
        teacher: Tensor | None = None
        for exit, weight in enumerate(weights):
            outputs = model(x, exit=exit)
            scores = first_output(outputs).float()
            loss = functional.cross_entropy(scores, y, label_smoothing=label_smoothing)
            if exit == 0:
                right = (scores.detach().argmax(1) == y).sum()
                teacher = scores.detach()
                for further in outputs[1:] if isinstance(outputs, tuple) else ():
                    loss = loss + AUXILIARY_WEIGHT * functional.cross_entropy(further.float(), y)
            elif settings.distill and teacher is not None:
                loss = torch.lerp(
                    loss, distillation_loss(scores, teacher, settings.distill_temperature), settings.distill
                )
            backward(weight * loss)
            total = total + weight * loss.detach()
        return total, right

    return step


def distillation_loss(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of a model's softened scores from a teacher's, both `(batch, classes)`, in nats.

    Times the temperature's square, so that its gradients weigh as much as those of the labels.
    """
    student = functional.log_softmax(scores / temperature, 1)
    target = functional.log_softmax(teacher / temperature, 1)
    return temperature**2 * functional.kl_div(student, target, reduction="batchmean", log_target=True)
