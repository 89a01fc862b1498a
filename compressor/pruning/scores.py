"""What a scoring method is given and gives back, and how the scores of coupled layers become one per channel.

A channel lives in several tensors: the filters of its own convolution, of those tied to it through an addition, of the
depthwise convolution that passes it on. Methods that look at the size of weights score each of these members apart,
divide by the member's mean score, so that no layer counts for more because its weights are larger or its filters
longer, and average over the members. The result says where in its layers a channel stands: 1 is the mean, in every
group, and that is what a global ranking compares.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, did_you_mean
from compressor.graph.channels import Channels, Group, Ids, Place
from compressor.graph.tensors import named_tensors
from compressor.training.data import cross_entropy
from compressor.training.task import Model, Pair

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """What a method may look at beside the model: batches of a task with their loss, and a seed."""

    batches: Sequence[Pair] = ()  # each (batch, channels, height, width) and (batch,); of a user's task see `Pair`
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
    if not np.array_equal(channels.identities[place.tensor, place.dim], group.ids):  # as they are in most
        where = channels.positions(place, group.ids).ravel()
        if len(where) != tensor.shape[place.dim] or (where[:-1] > where[1:]).any():
            tensor = tensor.index_select(place.dim, torch.from_numpy(where).to(tensor.device))
    rows = tensor.movedim(place.dim, 0).reshape(group.size, -1)
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
    return scores / mean if mean != 0 else torch.ones_like(scores)


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
