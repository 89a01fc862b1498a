"""Soft pruning: filters that are to go do not change for one period, while everything around them trains on.

Reference: AdapNet, section 3.2; the paper's "will not be updated" is taken by the word, so the output keeps flowing.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.graph.channels import Channels


class Held:
    """The rows of frozen filters, in every parameter that makes them, and of the optimizer's state for these."""

    def __init__(self, rows: Iterable[tuple[Tensor, int, int]]) -> None:
        """`rows` are (tensor, dimension, position)."""
        self._rows = list(rows)
        self._values = [tensor.detach().select(dim, at).clone() for tensor, dim, at in self._rows]
        self._views: list[Tensor] = []
        self._memory: list[int] = []

    def restore_(self) -> None:
        """Put the rows back as they were; to be called after every step of the optimizer."""
        if not self._rows:
            return
        memory = [tensor.data_ptr() for tensor, _, _ in self._rows]
        if memory != self._memory:  # tensors may have moved, to a device or into another memory format
            self._views = [tensor.detach().select(dim, at) for tensor, dim, at in self._rows]
            self._values = [value.to(view.device) for value, view in zip(self._values, self._views)]
            self._memory = memory
        torch._foreach_copy_(self._views, self._values)


def hold(
    model: nn.Module,
    optimizer: Optimizer | None,
    channels: Channels,
    frozen: Mapping[str, Iterable[int]],
) -> Held:
    """Take down the rows of the frozen channels, given by group: weights, biases, affine factors and their momentum."""
    parameters = dict(model.named_parameters())
    rows: list[tuple[Tensor, int, int]] = []
    for name, identities in frozen.items():
        chosen = list(identities)
        for place in channels.group(name).places:
            if place.role != "row" or place.tensor not in parameters or not chosen:
                continue
            parameter = parameters[place.tensor]
            state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
            companions = [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
            for at in channels.positions(place, chosen).ravel().tolist():
                rows.extend((tensor, place.dim, at) for tensor in (parameter, *companions))
    return Held(rows)
