"""A group's own kernels and those that read it, cut out of the model's weights: what KSE and insertion work on."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compressor.graph.channels import Channels, Group, Place
from compressor.graph.tensors import named_tensors
from compressor.pruning.adapnet import insert, kse
from compressor.pruning.scores import filters, tensors_of


def readers(model: nn.Module, channels: Channels, group: Group) -> Iterator[Tensor]:
    """The kernels of every layer that reads the group: (readers, channels, elements), channels in the group's order."""
    tensors = dict(model.named_parameters())
    for place in group.places:
        if place.role == "column" and place.tensor in tensors:
            where = channels.positions(place, group.ids.tolist())
            weight = tensors[place.tensor].detach().movedim(place.dim, 0)
            picked = weight.index_select(0, torch.from_numpy(where.ravel()).to(weight.device))
            # (channels, occurrences, readers, elements): a flattened map's columns are one kernel.
            kernels = picked.reshape(*where.shape, weight.shape[1], -1)
            yield kernels.permute(2, 0, 1, 3).flatten(2)


def indicators(model: nn.Module, channels: Channels, group: Group, generator: torch.Generator) -> Tensor:
    """The KSE indicator of every channel of the group: (channels,), on the host."""
    found = [kse.indicator(kernels, generator) for kernels in readers(model, channels, group)]
    return kse.combine(found) if found else torch.ones(group.size, dtype=torch.float64)


def strength(model: nn.Module, channels: Channels, group: Group) -> Tensor:
    """Sum of absolute weights of every filter, by the layer's mean, averaged over tied layers: (channels,)."""
    members = [rows.double().abs().sum(1).cpu() for rows in filters(tensors_of(model), channels, group)]
    return torch.stack([member / member.mean().clamp(min=1e-12) for member in members]).mean(0)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution gives each channel its own filter and so only passes channels on."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and 1 < module.groups == module.in_channels


def makers(model: nn.Module, group: Group) -> list[str]:
    """The modules that make the group's channels from others; more than one when additions or gates couple them."""
    return [name for name in group.producers if not is_depthwise(model.get_submodule(name))]


def newcomer(
    model: nn.Module, channels: Channels, group: Group, master: int, kind: str, generator: torch.Generator
) -> tuple[dict[str, Tensor], str]:
    """New rows for a correlative of the channel `master`, by tensor name, and the kind of correlation it became.

    What is not named copies the master's: bias, batch norm, depthwise kernels. An inverse's running mean is negated.
    """
    tensors = named_tensors(model)
    made_by = set(makers(model, group))
    places = [place for place in group.places if place.role == "row"]
    rows, became = {}, kind
    for place in places:
        if place.tensor.rpartition(".")[0] in made_by and tensors[place.tensor].ndim > 1:
            kernels, became = _correlated(tensors[place.tensor], place, channels, master, kind, generator)
            rows[place.tensor] = kernels
    means = [place for place in places if place.tensor.endswith("running_mean")]
    if became == "inverse" and len(means) == 1:
        rows[means[0].tensor] = -_slices(tensors[means[0].tensor], means[0], channels, master)
    return rows, became


def _slices(tensor: Tensor, place: Place, channels: Channels, identity: int) -> Tensor:
    where = torch.from_numpy(channels.positions(place, [identity])[0]).to(tensor.device)
    return tensor.detach().index_select(place.dim, where)


def _correlated(
    tensor: Tensor, place: Place, channels: Channels, master: int, kind: str, generator: torch.Generator
) -> tuple[Tensor, str]:
    kernels = _slices(tensor, place, channels, master).movedim(place.dim, 0)
    if kernels.ndim != 4:  # correlations are for kernels of two dimensions
        return -kernels.movedim(0, place.dim), "inverse"
    made = [insert.correlated(kernel, kind, generator) for kernel in kernels]
    return torch.stack([kernel for kernel, _ in made]).movedim(0, place.dim), made[0][1]
