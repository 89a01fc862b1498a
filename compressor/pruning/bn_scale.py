"""Prune the channels that batch norm has scaled down the most."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.graph.channels import Channels, Group
from compressor.pruning.scores import Given, Scores, as_values, slices, tensors_of

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
