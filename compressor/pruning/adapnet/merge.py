"""Which pairs of filters to make one: Algorithm 3.

Reference: AdapNet, section 3.2 and Algorithm 3. The limit per period and the cap of the cosine threshold are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.pruning.adapnet.settings import AdapNetSettings


@dataclass(frozen=True)
class Pair:
    """Two filters to merge at the place of the first: their positions, and the numbers that decided it."""

    keep: int
    drop: int
    cosine: float
    gamma2: float
    chebyshev: float
    gamma3: float


def cosine_threshold(similarity: Tensor, settings: AdapNetSettings) -> float:
    """Twice the mean cosine of all pairs of different filters, at most `gamma2_cap` so that duplicates can merge."""
    count = len(similarity)
    mean = (similarity.sum() - similarity.trace()) / (count * (count - 1))
    return min(settings.gamma2_factor * float(mean), settings.gamma2_cap)


def pairs(similarity: Tensor, shares: Tensor, eligible: Tensor, room: int, settings: AdapNetSettings) -> list[Pair]:
    """Pairs whose maps look alike and whose distributions over the concepts do not differ much, most alike first.

    Shapes: similarity (filters, filters), shares (filters, concepts), eligible (filters,). A filter is in one pair at
    most; at most a share of `merge_cap` of the filters (one at least) and at most `room` pairs are taken.
    """
    count = len(similarity)
    if shares.shape[1] < 2 or int(eligible.sum()) < 2 or room < 1:
        return []
    threshold = cosine_threshold(similarity, settings)
    allowed = torch.triu(similarity > threshold, diagonal=1) & eligible[:, None] & eligible[None, :]
    first, second = torch.nonzero(allowed, as_tuple=True)
    order = similarity[first, second].argsort(descending=True, stable=True)
    limit = min(max(1, int(settings.merge_cap * count)), room)
    taken: set[int] = set()
    found: list[Pair] = []
    for keep, drop in zip(first[order].tolist(), second[order].tolist()):
        if len(found) == limit:
            break
        distance = float((shares[keep] - shares[drop]).abs().max())
        if keep in taken or drop in taken or distance >= settings.gamma3:
            continue
        taken |= {keep, drop}
        found.append(Pair(keep, drop, float(similarity[keep, drop]), threshold, distance, settings.gamma3))
    return found
