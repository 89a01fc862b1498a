"""What a scoring method is given and gives back, and how the scores of coupled layers become one per channel.

A channel lives in several tensors: the filters of its own convolution, of those tied to it through an addition, of the
depthwise convolution that passes it on. Methods that look at the size of weights score each of these members apart,
divide by the member's mean score, so that no layer counts for more because its weights are larger or its filters
longer, and average over the members. The result says where in its layers a channel stands: 1 is the mean, in every
group, and that is what a global ranking compares.

The methods of one-shot pruning follow, but for obs, which ranks by curves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import DataError, ModelError, UsageError, cause, did_you_mean
from compressor.graph.channels import Channels, Group, Ids, Place
from compressor.graph.tensors import named_tensors
from compressor.training.data import cross_entropy
from compressor.training.evaluate import evaluating
from compressor.training.task import Model, Pair

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """What a method may look at beside the model: batches of a task with their loss, and a seed."""

    batches: Sequence[Pair] = ()  # each (batch, channels, height, width) and (batch,); of a user's task see `Pair`
    inputs: Sequence[Any] = ()  # batches as the model takes them, without labels, by which errors are told
    seed: int = 0
    changes: Mapping[str, Tensor] | None = None  # squared changes of the loss by group, where training gave gradients
    loss: Callable[[Model, Any, Any], tuple[Tensor, Any]] = cross_entropy  # of a model on a batch; a scalar comes first


@dataclass(frozen=True)
class Scores:
    """The lower, the sooner a channel goes: `values[group]` has one score for each of the group's `ids`."""

    values: Mapping[str, Values]
    refused: Mapping[str, str] = field(default_factory=dict)  # free groups without scores -> why


def in_order(values: Values, ids: Ids, wanted: Ids) -> Values:
    """The values of identities `ids`, in the order of `wanted`, which holds the same ones."""
    return values[np.argsort(ids)][np.argsort(np.argsort(wanted))]


Score = Callable[[nn.Module, Channels, Given], Scores]


def complete(found: object, channels: Channels, method: str) -> Scores:
    """What a user's own method gave, held against the network; a mapping of arrays or tensors by group will do.

    Raises:
        UsageError: it is neither, names no group, has not one score for each channel, or one that is no number.
    """
    given = found if isinstance(found, Scores) else Scores(found) if isinstance(found, Mapping) else None
    if given is None:
        raise UsageError(f"{method} returned a {type(found).__name__}: return Scores, or scores by group")
    free = {group.name: group for group in channels.free}
    values = {}
    for name, scores in given.values.items():
        if name not in free:
            raise UsageError(f"{method} scores {name!r}, which may not be pruned{did_you_mean(str(name), free)}")
        array = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
        if array.shape != (free[name].size,):
            raise UsageError(f"{method} gave {name} scores of shape {array.shape}: it has {free[name].size} channels")
        if not np.isfinite(array).all():
            raise UsageError(f"{method} gave {name} scores that are not finite")
        values[name] = array
    missing = {name: f"{method} gave it no scores" for name in free if name not in values}
    return Scores(values, missing | dict(given.refused))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, cut off from the autograd graph."""
    return {name: tensor.detach() for name, tensor in named_tensors(model).items()}


def slices(tensor: Tensor, place: Place, channels: Channels, group: Group) -> Tensor:
    """The group's part of a tensor, one row for each channel: (channels, values), in single precision or better."""
    held = channels.identities[place.tensor, place.dim]
    if held is not group.ids and not np.array_equal(held, group.ids):
        where = channels.positions(place, group.ids).ravel()
        if len(where) != tensor.shape[place.dim] or (where[:-1] > where[1:]).any():
            tensor = tensor.index_select(place.dim, torch.from_numpy(where).to(tensor.device))
    rows = (tensor.movedim(place.dim, 0) if place.dim else tensor).reshape(group.size, -1)
    return rows if rows.dtype == torch.float64 else rows.float()


def filters(tensors: Mapping[str, Tensor], channels: Channels, group: Group) -> Iterator[Tensor]:
    """The weights that make a group's channels, (channels, values) for each tensor; no biases and other vectors."""
    for place in group.places:
        if place.role == "row" and tensors[place.tensor].ndim > 1:
            yield slices(tensors[place.tensor], place, channels, group)


def relative(model: nn.Module, channels: Channels, measure: Callable[[Tensor], Tensor]) -> Scores:
    """`measure` of every group's filters, (channels, values) -> (channels,), combined as the module's text says."""
    tensors = tensors_of(model)
    values = {}
    for group in channels.free:
        members = [measure(rows).double() for rows in filters(tensors, channels, group)]
        means = [in_means(member) for member in members]
        values[group.name] = as_values(torch.stack(means).mean(0) if len(means) > 1 else means[0], group)
    return Scores(values)


def in_means(scores: Tensor) -> Tensor:
    """Scores of one layer as multiples of their mean; all 1 where that is zero."""
    mean = scores.mean()
    return scores / mean if mean.item() else torch.ones_like(scores)


def as_values(scores: Tensor, group: Group) -> Values:
    """Scores as an array.

    Raises:
        ModelError: they are not numbers, because the weights (or what came of them) are not.
    """
    values: Values = scores.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise ModelError(
            f"{group.name} has weights or gradients that are not finite: the model was damaged in training"
        )
    return values


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
