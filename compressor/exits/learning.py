"""How a detachable network of either kind learns: its step, its optimizer, its statistics afterwards.

References: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks" (CNSN), section 2.3, equation 1; and
"Network with Sub-networks: Layer-wise Detachable Neural Network" (NSN), section 3.2, equation 2, and section 4,
equation 4. There a layer lives in several models; the paper's copying step (equation 1) hands it from the smaller to
the larger ones after each update, so of all gradients only those of the two smallest models that have the layer are
ever seen. With one physical copy there is nothing to copy, and their mean is the whole rule.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compressor.errors import UsageError
from compressor.exits.detachable import Detachable, Detaching, with_own_statistics
from compressor.exits.nested import Nested, Stack
from compressor.exits.settings import DetachSettings
from compressor.training.batch_norm import recalibrate_
from compressor.training.loop import backward
from compressor.training.microbatches import Step
from compressor.training.schedule import start_lr
from compressor.training.settings import TrainSettings
from compressor.training.task import Task


def multi_model_step(
    task: Task, exits: int, settings: DetachSettings | None = None, label_smoothing: float = 0.0
) -> Step:
    """The step that trains a base and its `exits` sub-models together, each by the task's loss.

    The losses are back-propagated one after another into the same gradients, which gives those of their sum while the
    activations of one model at a time are held. The loss it returns is the sum, the right answers are the base's.
    Beyond the paper: `loss_weights`, and `distill`, which lets sub-models follow the base's outputs on the same batch.

    Raises UsageError for weights of another number and for a temperature of 0.
    """
    settings = settings or DetachSettings()
    weights = settings.loss_weights or (1.0,) * (exits + 1)
    if len(weights) != exits + 1 or min(weights) < 0 or weights[0] <= 0:
        raise UsageError(
            f"loss weights {', '.join(f'{w:g}' for w in weights)}: give {exits + 1}, the base's (above 0) first, then "
            "one for each sub-model"
        )
    if settings.distill_temperature <= 0:
        raise UsageError("distill_temperature is 0 and has to be above 0")

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


Shares = dict[nn.Parameter, float]


def shared_gradient_step(task: Task, model: Nested, settings: DetachSettings | None = None) -> Step:
    """The step that trains a base and its sub-models; returns the sum of their losses and the base's right answers.

    The L2 penalty is on the base's weights alone: `l2` times the weight is added to the base's gradient.
    """
    shares = [gradient_shares(model, exit) for exit in range(model.exits + 1)]
    penalty = l2_of(model, settings or DetachSettings())

    def step(running: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        losses, right = [], None
        sums: dict[nn.Parameter, Tensor] = {}
        for exit, mine in enumerate(shares):
            loss, counted = task.loss(AtExit(running, exit), x, y)
            wanted = list(mine)
            with torch.autocast(loss.device.type, enabled=False):
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            for parameter, gradient in zip(wanted, gradients, strict=True):
                if gradient is None:
                    continue
                if exit == 0 and penalty and parameter.ndim > 1:
                    gradient = gradient.add(parameter.detach(), alpha=penalty)
                share = gradient * mine[parameter]
                sums[parameter] = sums[parameter].add_(share) if parameter in sums else share
            losses.append(loss.detach())
            right = counted if exit == 0 else right
        for parameter, gradient in sums.items():
            parameter.grad = gradient
        return torch.stack(losses).sum(), right

    return step


def gradient_shares(model: Nested, exit: int) -> Shares:
    """What part of a parameter's gradient comes from the model of an exit; parameters that get none are left out.

    A layer that comes off takes halves from the two smallest models that have it, the base's first one the base's
    whole gradient. So does the output layer of a perceptron; elsewhere what every model has takes from all equally.
    """
    stacks = [stack for stack in model.stacks if isinstance(stack, Stack)]
    everyone = 1 / len(stacks)
    shares: Shares = defaultdict(float)
    for parts, share in _parts(stacks, exit, everyone):
        for parameter in parts.parameters():
            if parameter.requires_grad:
                shares[parameter] += share
    return dict(shares)


def _parts(stacks: list[Stack], exit: int, everyone: float) -> Iterator[tuple[nn.Module, float]]:
    """The parts of one model that learn from it, with its share in their gradients."""
    smallest = len(stacks) - 1
    here = stacks[exit]
    yield here.stem, everyone
    pairwise = not any(True for _ in here.stem.parameters())
    if not pairwise:
        yield here.rest, everyone
    elif exit >= smallest - 1:
        yield here.rest, 1 / 2
    for place, layer in enumerate(here.layers, start=exit):  # counted from the base's first layer
        last = min(place, smallest)  # the smallest model that has the layer
        if exit == last:
            yield layer, 1 / 2 if last else 1.0
        elif exit == last - 1:
            yield layer, 1 / 2


def l2_of(model: Nested, settings: DetachSettings) -> float:
    """The penalty's factor: the paper's for one hidden layer and for two where the settings have none."""
    if settings.l2 is not None:
        return settings.l2
    layers = len(model.stacks[0].layers)  # type: ignore[arg-type]
    return 9e-6 if layers == 1 else 9e-5


def damped_sgd(model: nn.Module, lr: float, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD with `V = momentum V + (1 - momentum) G`, V = 0 at the start; the model has to be on its device already.

    torch's dampening is that, apart from its first step, which takes the gradient whole: so V is put there before.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, dampening=momentum)
    if momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def training_of(
    model: Detaching, settings: DetachSettings, training: TrainSettings, task: Task
) -> tuple[Step, torch.optim.Optimizer | None]:
    """The step that trains all models together, and the optimizer where it is not the settings' usual one.

    The model has to be on its device. Raises UsageError for options that are out of range or of the other method.
    """
    if isinstance(model, Detachable):
        return multi_model_step(task, model.exits, settings, training.label_smoothing), None
    if settings.loss_weights or settings.distill:
        raise UsageError("NSN has a rule of its own for gradients: leave `loss_weights` and `distill` away")
    if training.optimizer != "sgd":
        raise UsageError(f"NSN has a momentum of its own: leave `optimizer` {training.optimizer} away")
    assert isinstance(model, Nested)
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
