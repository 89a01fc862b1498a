"""A group's own kernels and those that read it, cut out of the model's weights, and the KSE indicator: how much of a
channel's information the next layer's kernels draw on.

Reference: AdapNet, section 3.2 and equation (4), with s_c = alpha = 1; Li et al., "Exploiting Kernel Sparsity and
Entropy for Interpretable CNN Compression", whose nearest-neighbour distances and two min-max normalisations are kept
(AdapNet says "sum of similarity"; without the normalisations no or every channel would be below the threshold of 0.6).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from compressor.graph.channels import Channels, Group, Place
from compressor.graph.tensors import named_tensors
from compressor.pruning.adapnet import insert

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NEIGHBOURS = 5  # that a kernel's density looks at
ROWS = 256  # kernels of the next layer that are looked at
# Distances of that many kernel pairs at a time: 32 MiB in single precision.
PAIRS_AT_ONCE = 2**23


def kernel_densities(kernels: Tensor, neighbours: int) -> Tensor:
    """Sum of distances from each kernel to its nearest ones among a channel's kernels.

    `kernels` is (channels, readers, elements): the readers' kernels on each channel. Result (channels, readers).
    """
    channels, readers, _ = kernels.shape
    taken = min(neighbours, readers - 1)
    at_once = max(1, PAIRS_AT_ONCE // readers**2)
    sums = []
    for start in range(0, channels, at_once):
        part = kernels[start : start + at_once]
        distances = torch.cdist(part, part, compute_mode="donot_use_mm_for_euclid_dist")
        # The nearest is the kernel itself, at distance 0: it adds nothing to the sum.
        sums.append(distances.topk(taken + 1, dim=2, largest=False).values.sum(2))
    return torch.cat(sums)


def indicator(weight: Tensor, generator: torch.Generator, neighbours: int = NEIGHBOURS, rows: int = ROWS) -> Tensor:
    """v of every channel, 0..1, from one reader's weight (readers, channels, elements): (channels,), on the host.

    1 (never below a threshold) for channels whose kernels are all alike, and for all when one kernel reads them or all
    have the same entropy: then KSE says nothing. Of more than `rows` kernels a random subset is taken.
    """
    readers, channels, _ = weight.shape
    if readers < 2:
        return torch.ones(channels, dtype=torch.float64)
    if readers > rows:
        chosen = torch.randperm(readers, generator=generator, device=generator.device)[:rows]
        weight = weight[chosen.to(weight.device)]
    densities = kernel_densities(weight.detach().float().transpose(0, 1), neighbours).double().cpu()
    totals = densities.sum(1, keepdim=True)
    known = totals[:, 0] > 0
    shares = densities / totals.clamp(min=1e-300)
    entropy = -torch.special.xlogy(shares, shares).sum(1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    values = torch.ones(channels, dtype=torch.float64)
    if int(known.sum()) > 1:
        values[known] = _minmax((1 / (1 + _minmax(entropy[known]))).sqrt())
    return values


def _minmax(values: Tensor) -> Tensor:
    span = values.max() - values.min()
    return (values - values.min()) / span if float(span) > 0 else torch.ones_like(values)


def combine(indicators: Sequence[Tensor]) -> Tensor:
    """The indicator of channels with several readers: the largest, since one reader that needs a channel is enough."""
    return torch.stack(list(indicators)).amax(0)


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
    found = [indicator(kernels, generator) for kernels in readers(model, channels, group)]
    return combine(found) if found else torch.ones(group.size, dtype=torch.float64)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution gives each channel its own filter and so only passes channels on."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels


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
