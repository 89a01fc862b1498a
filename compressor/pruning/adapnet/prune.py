"""Which filters to freeze and then remove (Algorithm 2), filters that never fire, and which pairs to make one (3).

Reference: AdapNet, section 3.2 and Algorithms 2 and 3. The limits per period, the rule for dead filters and the cap of
the cosine threshold are ours.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compressor.graph.channels import Channels
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.tables import ROW_MIN, row_uniformity

GAMMA1 = 0.6  # the KSE indicator below which a filter may go (algorithm 2)
DEAD_PERIODS = 2


def fewest(original: int, settings: AdapNetSettings) -> int:
    """The number of filters under which a group that came with `original` is not pruned."""
    return max(2, math.ceil(settings.min_share * original))


def relative_costs(channels: Channels, groups: Sequence[str]) -> dict[str, float]:
    """How many parameters one channel of each group costs, by the mean over the groups."""
    whole = channels.params()
    saved = {name: whole - channels.params([int(channels.group(name).ids[0])]) for name in groups}
    mean = sum(saved.values()) / len(saved)
    return {name: value / mean for name, value in saved.items()}


def biased(beta: float, relative_cost: float, bias: float) -> float:
    """The threshold of a group whose channels cost that much: lower where they are expensive, or the other way round.

    Ours, not the paper's. A threshold of 1 lets none of the group's filters through.
    """
    return min(beta * relative_cost**-bias, 1.0) if relative_cost > 0 else beta


def candidates(
    table: Tensor,
    concepts: list[int],
    eligible: Tensor,
    room: int,
    beta: float,
    kse: Callable[[], Tensor],
    settings: AdapNetSettings,
    rank: Callable[[], Tensor | None] | None = None,
) -> dict[int, dict[str, float]]:
    """The filters that are equally active on all concepts and tell the next layer little, largest p-value first, and
    the numbers that decided it.

    `eligible` masks those neither protected nor frozen; `room` is how many the group can lose; `kse` gives the
    indicator of every filter and is called only if a filter passes the first test; `rank` a number by which the lowest
    go first, in place of the p-value. Needs two concepts; a filter needs `row_min` counts. At most a share of
    `prune_cap` of the filters is taken.
    """
    if len(concepts) < 2 or room < 1:
        return {}
    p_values = row_uniformity(table, concepts, settings.chi_s)
    passing = (p_values > beta) & eligible & (table.sum(1) >= ROW_MIN)
    if not bool(passing.any()):
        return {}
    values = kse()
    passing &= values < GAMMA1
    ranks = rank() if rank is not None else None
    ordered = (-p_values if ranks is None else ranks).argsort(stable=True)
    order = [i for i in ordered.tolist() if passing[i]]
    limit = min(math.ceil(settings.prune_cap * len(table)), room)
    return {
        i: {"p_value": float(p_values[i]), "beta": beta, "kse": float(values[i]), "gamma1": GAMMA1}
        for i in order[:limit]
    }


def dead(silent: Tensor, protected: Tensor, room: int) -> list[int]:
    """Filters that fired in no recorded batch of the last periods: removing them leaves the function as it is there."""
    found = torch.nonzero((silent >= DEAD_PERIODS) & ~protected).flatten().tolist()
    return found[: max(room, 0)]


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
