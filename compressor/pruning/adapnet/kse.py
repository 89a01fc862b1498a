"""The KSE indicator: how much information of a channel the next layer's kernels draw on.

Reference: AdapNet, section 3.2 and equation (4), with s_c = alpha = 1; Li et al., "Exploiting Kernel Sparsity and
Entropy for Interpretable CNN Compression", whose nearest-neighbour distances and two min-max normalisations are kept
(AdapNet says "sum of similarity"; without the normalisations no or every channel would be below the threshold of 0.6).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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
