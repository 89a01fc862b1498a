"""Mean, variance and covariance of what the readers of a group are given, over the recorded batches of a period.

By these the readers are compensated for filters that go, filters are ranked, and others stand in for them.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compressor.graph.channels import Channels, Group
from compressor.pruning.reconstruction.gram import residuals


class Moments(NamedTuple):
    """Of one batch that a reader was given; of several processes each has its part, until these are added up."""

    sums: Tensor  # (2, inputs): mean, mean square
    products: Tensor | None  # (inputs, inputs): the mean of every two inputs' product

    def over(self, add: Callable[[Tensor], Tensor]) -> "Moments":
        """The whole batch's, by the sum over the processes."""
        return Moments(add(self.sums), None if self.products is None else add(self.products))


def moments(given: Tensor, dim: int, share: float = 1.0, *, joint: bool = False) -> Moments:
    """Of a reader's input with channels on dimension `dim`, which is a `share` of the batch; `joint`: products too."""
    others = [d for d in range(given.ndim) if d != dim % given.ndim]
    values = given.detach()
    values = values if values.dtype == torch.float64 else values.float()
    sums = torch.stack([values.mean(others), values.square().mean(others)]) * share
    if not joint:
        return Moments(sums, None)
    rows = values.movedim(dim, -1).flatten(0, -2)
    return Moments(sums, rows.T @ rows / len(rows) * share)


class Means:
    """Mean and mean square of the input of every layer that reads channels, over the recorded batches of a period.

    With `joint` the means of every two inputs' product as well.
    """

    def __init__(self, joint: bool = False) -> None:
        self.joint = joint
        self.sums: dict[str, Tensor] = {}  # (2, inputs) by the name of the reader's weight
        self.products: dict[str, Tensor] = {}  # (inputs, inputs)
        self.batches: dict[str, int] = defaultdict(int)
        self.ids: dict[str, list[int]] = {}  # the channels that these inputs were while they were recorded

    def begin(self, channels: Channels) -> None:
        """Take down which channels the readers are about to be given."""
        places = [place for group in channels.free for place in group.places if place.role == "column"]
        self.ids = {place.tensor: channels.identities[place.tensor, place.dim].tolist() for place in places}

    def add(self, weight: str, moments: Moments) -> None:
        """Add one batch that a reader was given."""
        self.sums[weight] = self.sums[weight] + moments.sums if weight in self.sums else moments.sums
        self.batches[weight] += 1
        if moments.products is not None:
            known = self.products.get(weight)
            self.products[weight] = moments.products if known is None else known + moments.products

    def covariance(self, group: Group) -> Tensor | None:
        """Covariance of the group's channels (channels, channels), on the host, as a mean over its readers.

        None unless every reader was seen and has one input for each of the channels, as convolutions in groups and
        layers behind a flattened map have not.
        """
        total = torch.zeros(group.size, group.size, dtype=torch.float64)
        for place in group.places:
            if place.role != "column":
                continue
            given, ids = self.products.get(place.tensor), self.ids.get(place.tensor, [])
            if given is None or len(given) != len(ids) or any(ids.count(i) != 1 for i in group.ids.tolist()):
                return None
            at = torch.tensor([ids.index(i) for i in group.ids.tolist()])
            mean = (self.sums[place.tensor][0] / self.batches[place.tensor]).double().cpu()[at]
            moments = (given / self.batches[place.tensor]).double().cpu()[at][:, at]
            found = moments - torch.outer(mean, mean)
            total += found / found.diagonal().mean().clamp(min=1e-300)
        return total

    def _moments(self, weight: str) -> dict[int, tuple[float, float]]:
        """Mean and mean square of every channel that a reader was given; several inputs of one channel are averaged."""
        moments = (self.sums[weight] / self.batches[weight]).double().cpu()
        # A grouped convolution has several times as many inputs as its weight has columns.
        ids = torch.from_numpy(np.resize(np.array(self.ids[weight]), moments.shape[1]))
        known, index = ids.unique(return_inverse=True)
        totals = torch.zeros(2, len(known), dtype=torch.float64).index_add_(1, index, moments)
        means = totals / torch.bincount(index)
        return {identity: (mean, square) for identity, mean, square in zip(known.tolist(), *means.tolist())}

    def of(self, channels: Channels, group: Group) -> dict[int, float] | None:
        """Mean activation by channel, over the group's readers; None when no reader was seen."""
        totals: dict[int, list[float]] = defaultdict(list)
        for place in group.places:
            if place.role == "column" and place.tensor in self.sums:
                for identity, (mean, _) in self._moments(place.tensor).items():
                    totals[identity].append(mean)
        known = {identity: float(np.mean(totals[identity])) for identity in group.ids.tolist() if identity in totals}
        return known if len(known) == group.size else None

    def change(self, model: nn.Module, channels: Channels, group: Group) -> Tensor | None:
        """How much each channel's removal changes what its readers make, once its mean is made up for: (channels,).

        The variance of the channel (where heirs stand in for it, what they do not predict of it) times the squares of
        the weights that read it, as a share of the group's total, summed over the readers; None when a channel was not
        seen by one of them.
        """
        tensors = dict(model.named_parameters())
        ids = group.ids.tolist()
        joint = self.covariance(group) if self.joint else None
        totals = torch.zeros(group.size, dtype=torch.float64)
        for place in group.places:
            if place.role != "column" or place.tensor not in tensors:
                continue
            moments = self._moments(place.tensor) if place.tensor in self.sums else {}
            if not set(ids) <= moments.keys():
                return None
            variance = torch.tensor([moments[i][1] - moments[i][0] ** 2 for i in ids], dtype=torch.float64)
            variance = variance if joint is None else residuals(joint)
            squares = tensors[place.tensor].detach().movedim(place.dim, 0).flatten(1).double().square().sum(1).cpu()
            change = variance.clamp(min=0) * squares[torch.from_numpy(channels.positions(place, ids))].sum(1)
            totals += change / change.sum().clamp(min=1e-300)
        return totals

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        sums = {"sums": dict(self.sums), "products": dict(self.products)}
        return {**sums, "batches": dict(self.batches), "ids": dict(self.ids)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over what `state_dict` gave."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.products = {name: value.to(device) for name, value in state["products"].items()}
        self.batches = defaultdict(int, state["batches"])
        self.ids = dict(state["ids"])
