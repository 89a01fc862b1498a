"""What to change at the end of a period, as functions of what was seen: edits and filters to freeze.

Nothing here changes a unit: the method lets these follow what was decided and carried out.

Reference: AdapNet, section 3 and figure 1: remove what was frozen, prune, merge, insert.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from compressor.graph.channels import Channels, Group
from compressor.pruning.adapnet import insert, prune, tables
from compressor.pruning.adapnet.maps import Means
from compressor.pruning.adapnet.neighbours import indicators, newcomer
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.tables import ROW_MIN
from compressor.pruning.adapnet.unit import Unit
from compressor.surgery.edits import Edit, Insert, Merge, Prune

UNIFORM = "equally active on all concepts, and the next layer draws little on it"


class Looked(NamedTuple):
    """What decisions are taken by: the network as it stands, and what the period that ends showed."""

    model: nn.Module
    channels: Channels
    means: Means
    settings: AdapNetSettings
    generator: torch.Generator

    def group(self, unit: Unit) -> Group:
        """The channels of a unit."""
        return self.channels.group(unit.name)


def removals(looked: Looked, unit: Unit) -> list[Edit]:
    """The filters that were frozen in the period that ends, whatever they did in it, and those that never fire."""
    gone = torch.nonzero(unit.frozen).flatten().tolist()
    why = dict.fromkeys(gone, f"{UNIFORM}; frozen for one period")
    dead = prune.dead(unit.silent, (unit.protect > 0) | unit.frozen, _room(looked, unit, len(gone)))
    why |= dict.fromkeys(dead, f"never active in {prune.DEAD_PERIODS} periods")
    return list(prunes(looked, unit, why, unit.reasons))


def candidates(looked: Looked, unit: Unit, threshold: float) -> dict[int, dict[str, float]]:
    """The channels that algorithm 2 wants to go, and the numbers that decided it."""
    group = looked.group(unit)
    change = partial(looked.means.change, looked.model, looked.channels, group)
    kse = partial(indicators, looked.model, looked.channels, group, looked.generator)
    free, room, rank = unit.protect == 0, _room(looked, unit, 0), looked.settings.victims == "change"
    found = prune.candidates(
        unit.table, unit.concepts, free, room, threshold, kse, looked.settings, change if rank else None
    )
    return {unit.ids[position]: numbers for position, numbers in found.items()}


def prunes(
    looked: Looked, unit: Unit, why: Mapping[int, str], numbers: Mapping[int, dict[str, float]]
) -> Iterator[Edit]:
    """Prune the filters at these positions, with the means that make up for them."""
    if not why:
        return
    means = looked.means.of(looked.channels, looked.group(unit))
    for position, reason in why.items():
        identity = unit.ids[position]
        mean = None if means is None else (means[identity],)
        yield Prune(unit.name, (identity,), reason, mean, numbers.get(identity, {}))


def merges(looked: Looked, unit: Unit, leaving: Mapping[int, dict[str, float]]) -> list[Edit]:
    """Algorithm 3, on the filters that are not about to leave."""
    if not looked.settings.merge or looked.group(unit).prune_only is not None or unit.recording is None:
        return []
    eligible = (unit.protect == 0) & (unit.table.sum(1) >= ROW_MIN)
    eligible[[unit.ids.index(identity) for identity in leaving]] = False
    concepts, room = tables.concept_shares(unit.table, unit.concepts), _room(looked, unit, len(leaving))
    why = "their maps look alike and they are active on the same concepts"
    found = prune.pairs(unit.recording.similarity(), concepts, eligible, room, looked.settings)
    return [Merge(unit.name, unit.ids[keep], unit.ids[drop], why, each) for (keep, drop), each in found.items()]


def insertion(looked: Looked, unit: Unit, coupled: bool, position: int, layers: int) -> list[Edit]:
    """Algorithm 4, for the layer at `position` of so many that change."""
    settings, group = looked.settings, looked.group(unit)
    fixed = coupled or group.prune_only is not None
    if not settings.insert or fixed or unit.filters >= int(settings.max_width * unit.original):
        return []
    judged = ~unit.frozen & (unit.table.sum(1) >= ROW_MIN)
    need = insert.need(tables.concept_shares(unit.table, unit.concepts), judged)
    masters = need.masters()
    if not masters:
        return []
    drawn = masters[int(torch.randint(len(masters), (), generator=looked.generator))]
    kind = insert.correlation(position, layers)
    rows, became = newcomer(looked.model, looked.channels, group, unit.ids[drawn], kind, looked.generator)
    numbers = {"p1": float(need.p1[drawn]), "p2": float(need.p2[drawn]), "sum_p1": need.sum_p1, "sum_p2": need.sum_p2}
    numbers["concepts"] = len(unit.concepts)
    why = f"filters are active on too many concepts; its kernels are the {became} of another's"
    return [Insert(unit.name, unit.ids[drawn], why, rows, "zero", numbers)]


def _room(looked: Looked, unit: Unit, planned: int) -> int:
    """How many more filters the group can lose."""
    return unit.filters - planned - prune.fewest(unit.original, looked.settings)
