"""Which filters to freeze and then remove: Algorithm 2, its limits, and filters that never fire.

Reference: AdapNet, section 3.2 and Algorithm 2. The limits per period and the rule for dead filters are ours.
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
