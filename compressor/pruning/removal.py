"""The order in which scored channels go: units of channels of one group that leave together, the first to go first."""

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from compressor.graph.channels import Channels, Group, Ids
from compressor.pruning.scores import Values

BLOCKS = 2  # of the chip's, so many of them a layer has at least; where it is narrower, smaller ones


@dataclass(frozen=True)
class Unit:
    """The next channels of a group to go: as many as rounding demands at once."""

    group: str
    ids: Ids
    share: float  # of the group that is gone after this unit
    score: float  # of the last of them


def cuts(group: Group, channels: Channels, multiple: int, least: int = 1, most: float = 1) -> list[int]:
    """How many channels may be gone: none at first, each time as many more as make widths multiples.

    At least so many channels stay, and no more than the share `most` of them goes.
    """
    step = step_of(group, channels, multiple)
    least = max(1, math.ceil(least / step)) * step
    total = group.size
    gone = range(total - (total - 1) // step * step, total - least + 1, step)
    return [0, *gone[: bisect.bisect_right(gone, most + 1e-9, key=lambda count: count / total)]]


def units(group: Group, scores: Values, cuts: Sequence[int]) -> list[Unit]:
    """What may be taken from a group, the lowest scores first; equal scores go in the order of the filters."""
    order = np.argsort(scores, kind="stable")
    ids, ordered = group.ids[order], scores[order].tolist()
    return [Unit(group.name, ids[begin:end], end / group.size, ordered[end - 1]) for begin, end in pairwise(cuts)]


def together(group: Group, scores: Values, cuts: Sequence[int]) -> list[Unit]:
    """All that `units` lists, as one unit."""
    return units(group, scores, [cuts[0], *cuts[1:][-1:]])


def narrowed(multiple: int, group: Group) -> int:
    """What the width of a group is to be a multiple of, so that it has several widths to choose from."""
    while multiple > 1 and group.size < BLOCKS * multiple:
        multiple //= 2
    return multiple


def step_of(group: Group, channels: Channels, multiple: int) -> int:
    """How many channels make the width of every layer of the group a multiple: grouped layers hold a channel often."""
    step = 1
    for place in group.places:
        if place.role == "row":
            occurrences = int(np.count_nonzero(channels.identities[place.tensor, place.dim] == group.ids[0]))
            step = math.lcm(step, multiple // math.gcd(multiple, occurrences))
    return step


def by_share(queues: Mapping[str, list[Unit]]) -> list[Unit]:
    """Units of all groups so that every layer shrinks in step with the others."""
    return sorted(_all(queues), key=lambda unit: unit.share)


def by_score(queues: Mapping[str, list[Unit]]) -> list[Unit]:
    """Units of all groups, the lowest scores first, whatever layer they are in; equal scores spread over the layers."""
    return sorted(_all(queues), key=lambda unit: (unit.score, unit.share))


def _all(queues: Mapping[str, list[Unit]]) -> Iterator[Unit]:
    for queue in queues.values():
        yield from queue


def up_to(order: Iterable[Unit], most: float) -> list[Unit]:
    """The first units, as long as they hold no more than `most` channels together."""
    taken, count = [], 0
    for unit in order:
        count += len(unit.ids)
        if count > most + 1e-9:
            break
        taken.append(unit)
    return taken
