"""Which pairs of filters to make one: Algorithm 3.

Reference: AdapNet, section 3.2 and Algorithm 3. The limit per period and the cap of the cosine threshold are ours.
"""

import torch
from torch import Tensor

from compressor.pruning.adapnet.settings import AdapNetSettings

GAMMA2_FACTOR, GAMMA2_CAP = 2.0, 0.95  # how alike maps are, by the mean similarity and at most (algorithm 3)
GAMMA3 = 0.8  # distance of their concepts below which filters are alike


def cosine_threshold(similarity: Tensor) -> float:
    """Twice the mean cosine of all pairs of different filters, at most `gamma2_cap` so that duplicates can merge."""
    count = len(similarity)
    mean = (similarity.sum() - similarity.trace()) / (count * (count - 1))
    return min(GAMMA2_FACTOR * float(mean), GAMMA2_CAP)


def pairs(
    similarity: Tensor, shares: Tensor, eligible: Tensor, room: int, settings: AdapNetSettings
) -> dict[tuple[int, int], dict[str, float]]:
    """Pairs whose maps look alike and whose distributions over the concepts do not differ much, most alike first.

    Each is (the filter that stays, the one that goes) with the numbers that decided it.

    Shapes: similarity (filters, filters), shares (filters, concepts), eligible (filters,). A filter is in one pair at
    most; at most a share of `merge_cap` of the filters (one at least) and at most `room` pairs are taken.
    """
    count = len(similarity)
    if shares.shape[1] < 2 or int(eligible.sum()) < 2 or room < 1:
        return {}
    threshold = cosine_threshold(similarity)
    allowed = torch.triu(similarity > threshold, diagonal=1) & eligible[:, None] & eligible[None, :]
    first, second = torch.nonzero(allowed, as_tuple=True)
    order = similarity[first, second].argsort(descending=True, stable=True)
    limit = min(max(1, int(settings.merge_cap * count)), room)
    taken: set[int] = set()
    found: dict[tuple[int, int], dict[str, float]] = {}
    for keep, drop in zip(first[order].tolist(), second[order].tolist()):
        if len(found) == limit:
            break
        distance = float((shares[keep] - shares[drop]).abs().max())
        if keep in taken or drop in taken or distance >= GAMMA3:
            continue
        taken |= {keep, drop}
        cosine = float(similarity[keep, drop])
        found[keep, drop] = {"cosine": cosine, "gamma2": threshold, "chebyshev": distance, "gamma3": GAMMA3}
    return found
