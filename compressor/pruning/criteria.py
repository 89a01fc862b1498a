"""Criteria that score channels one by one: the methods of one-shot pruning but for obs, which ranks by curves."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import DataError, ModelError, cause
from compressor.graph.channels import Channels, Group
from compressor.pruning.scores import Given, Scores, as_values, in_means, relative, slices, tensors_of
from compressor.training.evaluate import evaluating
from compressor.training.task import Pair


def l1(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The L1 norm of a channel's filters.

    Reference: Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    The paper follows the shortcut where layers are coupled; here all coupled layers have a say (`scores`).
    """
    return relative(model, channels, lambda rows: rows.abs().sum(1))


def l2(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The L2 norm of a channel's filters.

    Reference: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
    IJCAI 2018, section 3.2. Here filters are cut at once and not zeroed again in every epoch.
    """
    return relative(model, channels, lambda rows: torch.linalg.vector_norm(rows, dim=1))


def fpgm(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The sum of a filter's Euclidean distances to all filters of its layer; lowest near their geometric median.

    Reference: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019, section 3.3. The distances are all taken before the first filter goes, as there.
    """
    return relative(model, channels, _distances)


def _distances(rows: Tensor) -> Tensor:
    exact = rows.double()  # distances between near neighbours are small differences of large numbers
    return torch.cdist(exact, exact).sum(1)


def random(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """A number from 0 to 1 for each channel, the same for the same seed.

    Reference: Mittal, Bhardwaj, Khapra, Ravindran, "Recovering from Random Pruning: On the Plasticity of Deep
    Convolutional Neural Networks", WACV 2018.
    """
    generator = np.random.default_rng(given.seed)
    return Scores({group.name: generator.random(group.size) for group in channels.free})


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # the first: batch norm and instance norm


def bn_scale(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The absolute scale of a channel's normalisation, averaged over all layers that normalise the channel.

    Reference: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017, section 3. The scales are compared as they are, as there; the paper's training with an L1 penalty on them
    is the user's. Group and layer norm are read the same way. Groups without normalisation are refused.

    Raises:
        ModelError: no free group has a scale.
    """
    tensors = tensors_of(model)
    scales = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, _NORMS) and module.weight is not None
    }
    values, refused = {}, {}
    for group in channels.free:
        members = list(_scales(group, channels, tensors, scales))
        if members:
            values[group.name] = as_values(torch.stack(members).mean(0), group)
        else:
            refused[group.name] = "bn-scale: no normalisation layer scales these channels"
    if refused and not values:
        raise ModelError("bn-scale looks at batch norm, and no layer that may be pruned has one: use l1")
    return Scores(values, refused)


def _scales(group: Group, channels: Channels, tensors: dict[str, Tensor], scales: set[str]) -> Iterator[Tensor]:
    for place in group.places:
        if place.tensor in scales:
            yield slices(tensors[place.tensor], place, channels, group).double().abs().mean(1)


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
