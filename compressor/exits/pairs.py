"""What one batch does to nested networks: gradients averaged between neighbouring models, and the paper's momentum.

Reference: Fuengfusin and Tamukoh, "Network with Sub-networks: Layer-wise Detachable Neural Network", section 3.2,
equation 2, and section 4, equation 4. A layer lives in several models; the paper's copying step (equation 1) hands it
from the smaller to the larger ones after each update, so of all gradients only those of the two smallest models that
have the layer are ever seen. With one physical copy there is nothing to copy, and their mean is the whole rule.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compressor.exits.losses import AtExit
from compressor.exits.nested import Nested, Stack
from compressor.exits.settings import DetachSettings
from compressor.training.microbatches import Step
from compressor.training.task import Task

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
