"""What AdapNet keeps of a period's feature maps: a bounded buffer per group of channels, on the maps' own device.

The paper clusters every map of every batch; here each filter gives `rec_maps` maps in each of `rec_batches` batches,
or as many more as fill the dictionary where filters are few. Memory of a buffer in bytes: 2 * filters * maps * side^2
(half precision), at most 25 MB for 512 filters at side 32, plus one float per pair of filters for the cosines.

With the maps go mean and variance of what the readers of a group are given: by these the readers are compensated for
filters that go, and filters are ranked.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.graph.channels import Channels, Group

REC_BATCHES = 8  # batches of a period that are recorded
REC_MAPS = 3  # of each filter and recorded batch, at least
COSINE_IMAGES = 16  # of a recorded batch, that similarities come from

FIRED = 1e-6  # a map whose range is below this has no pattern
SIDES = (8, 32)


def map_size(height: int, width: int) -> int:
    """The side S that maps of this size are resized to for DSC-Net: the next power of two, 8 to 32.

    Upsampling a 4x4 map to DSC-Net's own 32x32 would add no information and cost 16 times as much.
    """
    power = 1 << (max(height, width) - 1).bit_length()
    return int(min(max(power, SIDES[0]), SIDES[1]))


def prepare(maps: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Scale maps (n, height, width) to 0..1 and to `size` x `size`; the second result (n,) says which of them fired.

    A map that did not fire comes back as zeros. Maps with negative values are shifted to start at zero first.
    """
    maps = maps.float()
    maps = maps - maps.amin((-2, -1), keepdim=True).clamp(max=0)
    high = maps.amax((-2, -1), keepdim=True)
    fired = high > FIRED
    maps = torch.where(fired, maps / high.clamp(min=FIRED), 0.0)
    if maps.shape[-2:] != (size, size):
        shrinks = max(maps.shape[-2:]) > size
        maps = F.interpolate(maps[:, None], (size, size), mode="bilinear", antialias=shrinks)[:, 0]
    return maps, fired[:, 0, 0]


def maps_per_batch(filters: int, rec_maps: int, rec_batches: int, dict_size: int) -> int:
    """How many maps each of so many filters gives in a recording batch.

    Without more from each, a narrow layer could not tell its clusters apart and would never be judged again.
    """
    return max(rec_maps, math.ceil(dict_size / (filters * rec_batches)))


def draw_images(filters: int, count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Which images of a batch each filter's maps are taken from: (filters, count), drawn alone for every filter."""
    return torch.randint(batch, (filters, count), generator=generator, device=generator.device)


def cosine_sums(maps: Tensor) -> Tensor:
    """Cosine of every two filters' maps of the same image, summed over the images: (filters, filters).

    `maps` is (images, filters, height, width). Reference: section 3.2, the similarity behind Algorithm 3.
    """
    flat = maps.float().flatten(2)
    flat = flat / flat.norm(dim=2, keepdim=True).clamp(min=1e-8)
    rows = flat.transpose(0, 1).flatten(1)
    return torch.mm(rows, rows.T)


class Part(NamedTuple):
    """What a process sees of a batch: where its images begin, and how many there are in all."""

    first: int
    whole: int


class Shown(NamedTuple):
    """What one batch shows of a group's maps; of several processes each has its part, until these are added up."""

    maps: Tensor  # (filters, count, size, size), zeros where another process has the image
    fired: Tensor  # (filters, count), integers
    cosines: Tensor  # (filters, filters), summed over images
    peak: Tensor  # (filters,): largest activation
    images: int  # of the whole batch, that the cosines are summed over

    def over(self, add: Callable[[Tensor], Tensor], largest: Callable[[Tensor], Tensor]) -> "Shown":
        """The whole batch's, by the sum and the element-wise maximum over the processes."""
        return Shown(add(self.maps), add(self.fired), add(self.cosines), largest(self.peak), self.images)


def show(activations: Tensor, images: Tensor, size: int, part: Part) -> Shown:
    """Look at one batch: `activations` (batch, filters, height, width), `images` from `draw_images`.

    Nothing here waits for a GPU.
    """
    activations = activations.detach()
    filters, count = images.shape
    rows = torch.arange(filters, device=activations.device).repeat_interleave(count)
    places = images.to(activations.device, non_blocking=True).flatten() - part.first
    here = (places >= 0) & (places < len(activations))
    maps, fired = prepare(activations[places.clamp(0, len(activations) - 1), rows], size)
    maps = torch.where(here[:, None, None], maps, 0.0).half()
    return Shown(
        maps.view(filters, count, size, size),
        (here & fired).int().view(filters, count),
        cosine_sums(activations[: max(COSINE_IMAGES - part.first, 0)]),
        activations.float().abs().amax((0, 2, 3)),
        min(COSINE_IMAGES, part.whole),
    )


class Recording:
    """The running period's maps and sums of one group of `filters` channels; made anew for every period."""

    def __init__(self, filters: int, maps: int, size: int, device: torch.device) -> None:
        """A buffer of `maps` per filter, each `size` x `size`."""
        self.maps = torch.zeros(filters, maps, size, size, dtype=torch.float16, device=device)
        self.fired = torch.zeros(filters, maps, dtype=torch.bool, device=device)
        self.cosines = torch.zeros(filters, filters, device=device)
        self.peak = torch.zeros(filters, device=device)
        self.images = 0
        self.filled = 0

    def add(self, shown: Shown, frozen: Tensor) -> None:
        """Record one batch; filters that are `frozen` (a mask on the host) leave no maps."""
        slots = slice(self.filled, self.filled + shown.maps.shape[1])
        self.maps[:, slots] = shown.maps
        self.fired[:, slots] = shown.fired.bool() & ~frozen.to(self.maps.device, non_blocking=True)[:, None]
        self.filled += shown.maps.shape[1]
        self.cosines += shown.cosines
        self.images += shown.images
        self.peak = torch.maximum(self.peak, shown.peak)

    def similarity(self) -> Tensor:
        """Mean cosine of every two filters' maps over the recorded images: (filters, filters), on the host."""
        return (self.cosines / max(self.images, 1)).double().cpu()

    def dead(self) -> Tensor:
        """Mask of the filters that no recorded image moved, on the host; empty when nothing was recorded."""
        return (self.peak <= FIRED).cpu() & (self.filled > 0)

    def select_(self, filters: Tensor) -> None:
        """Keep the given filters (indices on the host), in their order, after an edit of the group."""
        chosen = filters.to(self.maps.device)
        self.maps, self.fired, self.peak = self.maps[chosen], self.fired[chosen], self.peak[chosen]
        self.cosines = self.cosines[chosen][:, chosen]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and counts, so that a run killed within a period goes on with the same maps."""
        names = ("maps", "fired", "cosines", "peak", "images", "filled")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, moved to this recording's device."""
        device = self.maps.device
        for name, value in state.items():
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)


def moments(given: Tensor, dim: int, share: float = 1.0) -> Tensor:
    """Mean and mean square (2, inputs) of a reader's input with channels on dimension `dim`, times a `share`.

    That is the share of the batch, where each of several processes has a part of it: their sum is the whole batch's.
    """
    others = [d for d in range(given.ndim) if d != dim % given.ndim]
    values = given.detach()
    values = values if values.dtype == torch.float64 else values.float()
    return torch.stack([values.mean(others), values.square().mean(others)]) * share


class Means:
    """Mean and mean square of the input of every layer that reads channels, over the recorded batches of a period."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # (2, inputs) by the name of the reader's weight
        self.batches: dict[str, int] = defaultdict(int)
        self.ids: dict[str, list[int]] = {}  # the channels that these inputs were while they were recorded

    def begin(self, channels: Channels) -> None:
        """Take down which channels the readers are about to be given."""
        places = [place for group in channels.free for place in group.places if place.role == "column"]
        self.ids = {place.tensor: channels.identities[place.tensor, place.dim].tolist() for place in places}

    def add(self, weight: str, moments: Tensor) -> None:
        """Add one batch that a reader was given."""
        self.sums[weight] = self.sums[weight] + moments if weight in self.sums else moments
        self.batches[weight] += 1

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

        The variance of the channel times the squares of the weights that read it, as a share of the group's total,
        summed over the readers; None when a channel was not seen by one of them.
        """
        tensors = dict(model.named_parameters())
        ids = group.ids.tolist()
        totals = torch.zeros(group.size, dtype=torch.float64)
        for place in group.places:
            if place.role != "column" or place.tensor not in tensors:
                continue
            moments = self._moments(place.tensor) if place.tensor in self.sums else {}
            if not set(ids) <= moments.keys():
                return None
            variance = torch.tensor([moments[i][1] - moments[i][0] ** 2 for i in ids], dtype=torch.float64)
            squares = tensors[place.tensor].detach().movedim(place.dim, 0).flatten(1).double().square().sum(1).cpu()
            change = variance.clamp(min=0) * squares[torch.from_numpy(channels.positions(place, ids))].sum(1)
            totals += change / change.sum().clamp(min=1e-300)
        return totals

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {"sums": dict(self.sums), "batches": dict(self.batches), "ids": dict(self.ids)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over what `state_dict` gave."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.batches = defaultdict(int, state["batches"])
        self.ids = dict(state["ids"])
