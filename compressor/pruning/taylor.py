"""Prune the channels whose loss would change least, estimated from gradients on a few batches."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import DataError, cause
from compressor.graph.channels import Channels, Group
from compressor.pruning.scores import Given, Scores, as_values, in_means, slices
from compressor.training.evaluate import evaluating
from compressor.training.task import Pair


def taylor(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The first-order change of the loss when a channel goes, root mean square over the batches, in a layer's means.

    A channel goes by taking away the columns of every layer that reads it, so the change is the sum of gradient times
    weight over all those columns. That is the sum of the feature map times its gradient; coupled layers need no rule
    of their own. A group that nothing reads by a weight is judged by the weights that make it. Changes of different
    layers do not compare as they are: one ranking over all of them empties whole layers. So each is divided by its
    layer's mean.

    Reference: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019,
    section 3.1 (square of a sum, averaged over mini-batches); feature map times gradient, and that layers need scales
    of their own: Molchanov, Tyree, Karras, Aila, Kautz, "Pruning Convolutional Neural Networks for Resource Efficient
    Inference", ICLR 2017, section 2.2.

    Raises:
        ModelError: the model gives no class scores for them.
        DataError: the model does not take the images, or the labels are none of its classes.
    """
    totals = dict(given.changes or {})
    for pair in () if given.changes else given.batches:
        add_(totals, _gradient_times_weight(model, pair, given), channels, 1 / len(given.batches))
    return Scores({group.name: as_values(in_means(totals[group.name].sqrt()), group) for group in channels.free})


def add_(totals: dict[str, Tensor], products: Mapping[str, Tensor], channels: Channels, weight: float = 1.0) -> None:
    """Add one batch to the squared changes of the loss by group, each (channels,); `products` are gradients times
    weights of every parameter.
    """
    for group in channels.free:
        totals[group.name] = totals.get(group.name, 0) + _change(products, channels, group).square() * weight


def products_of(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Gradient times weight of every parameter, for a loss of the user's; the model is in eval mode meanwhile and keeps
    its gradients.
    """
    weights = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with evaluating(model), torch.enable_grad():
        gradients = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


class _Loss(nn.Module):
    """A model's loss as a module, so that its weights can be exchanged."""

    def __init__(self, model: nn.Module, given: Given) -> None:
        super().__init__()
        self.model, self.given = model, given

    def forward(self, x: Any, y: Any) -> Tensor:
        return self.given.loss(self.model, x, y)[0]


def _change(products: Mapping[str, Tensor], channels: Channels, group: Group) -> Tensor:
    """(channels,): the sum of gradient times weight over all columns that read each channel."""
    held = [place for place in group.places if place.tensor in products]  # buffers have no gradient
    read = [place for place in held if place.role == "column"] or held
    parts = (slices(products[place.tensor], place, channels, group) for place in read)
    return torch.stack([part.double().sum(1) for part in parts]).sum(0)


def _gradient_times_weight(model: nn.Module, pair: Pair, given: Given) -> dict[str, Tensor]:
    """For every parameter, element by element; zero where the loss does not depend on it. The model stays untouched."""
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    for weight in weights.values():
        weight.requires_grad_()
    buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    with evaluating(model), torch.enable_grad():
        try:
            values = {f"model.{name}": value for name, value in {**weights, **buffers}.items()}
            loss = torch.func.functional_call(_Loss(model, given), values, pair)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"taylor needs images and class labels that fit the model ({cause(error)})") from error
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
