"""The order in which scored channels go, and how much of it meets a target, predicted without touching the model."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import nn

from compressor.graph.channels import Channels, Group, Ids
from compressor.profiling.timetable import preferred_multiple
from compressor.pruning.price import Goal, in_words, unreachable
from compressor.pruning.scores import Given, Values, l1
from compressor.surgery.edits import Edit, Insert, Plan, Prune

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
    return [0, *gone[: bisect_right(gone, most + 1e-9, key=lambda count: count / total)]]


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
    made = [channels.identities[place.tensor, place.dim] for place in group.places if place.role == "row"]
    step = 1
    for ids in {id(ids): ids for ids in made}.values() if multiple > 1 else ():
        occurrences = int(np.count_nonzero(ids == group.ids[0]))
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


TOLERANCE = 0.01  # of the target: how near counts as met
FAR = 0.1  # of what is wanted: where rounding ends further off, smaller multiples are tried
_PAIRED_GROUPS = 40  # of networks with more than that no pairs are tried: they have steps small enough


@dataclass(frozen=True)
class Met:
    """What to take, a line for the user for each goal that it is off, and how far: the largest share of a target."""

    taken: list[Unit]
    notes: tuple[str, ...] = ()
    off: float = 0.0


def meet(channels: Channels, fixed: Sequence[Unit], order: Sequence[Unit], goals: Sequence[Goal]) -> Met:
    """The units of `order` that come nearest to a goal when the `fixed` ones are gone as well; of several goals, those
    after which all are met.

    Raises ModelError where one is missed even when all units are gone.
    """
    searches = [_Search(goal, fixed) for goal in goals]
    for search in searches:
        least = search.cost(order)
        if least > search.goal.wanted * (1 + TOLERANCE):
            raise unreachable(search.goal, least, _reasons(channels))
    if len(searches) == 1:
        taken = searches[0].nearest(order)
    else:
        taken = max((search.first(order) for search in searches), key=len)
    missed = {}
    for search in searches:
        found, wanted, unit = search.cost(taken), search.goal.wanted, search.goal.price.unit
        off = found / wanted - 1
        if off > TOLERANCE or (off < -TOLERANCE and len(searches) == 1):
            missed[abs(off)] = (
                f"the target of {in_words(wanted, unit)} is not met within {TOLERANCE:.0%}: channels go in whole "
                f"units, and the nearest found is {in_words(found, unit)} ({off:+.1%})"
            )
    return Met(taken, tuple(missed.values()), max(missed, default=0.0))


def _reasons(channels: Channels, most: int = 3) -> list[str]:
    """Why the largest frozen groups stay."""
    frozen = sorted((group for group in channels.groups if group.frozen), key=lambda group: -group.size)
    return [f"{group.name}: {group.frozen}" for group in frozen[:most]]


class _Search:
    """What parts of an order cost, on top of what is gone anyway, and how far a goal is."""

    def __init__(self, goal: Goal, fixed: Sequence[Unit]) -> None:
        self.goal = goal
        self._fixed = removed(fixed)

    def cost(self, taken: Iterable[Unit]) -> float:
        return self.goal.price.without(np.concatenate([self._fixed, removed(taken)]).tolist())

    def first(self, order: Sequence[Unit]) -> list[Unit]:
        """The fewest first units that meet the goal, or come within the tolerance."""
        return list(order[: bisect_left(range(len(order)), True, key=lambda count: self._met(order[:count]))])

    def _met(self, taken: Sequence[Unit]) -> bool:
        return self.cost(taken) <= self.goal.wanted * (1 + TOLERANCE)

    def nearest(self, order: Sequence[Unit]) -> list[Unit]:
        """The first units of the order, as many as come within the tolerance or nearest from below; where that is not
        near enough, some more or fewer.

        Fewer and more is tried one unit of a group at a time, then one group's against another's, as long as it helps:
        on either side of the target, then below it.
        """
        wanted = self.goal.wanted
        low, high = 0, len(order)  # `high` units are below what is wanted, `low` are not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.cost(order[:middle]) >= wanted else (low, middle)
        near = min((order[:low], order[:high]), key=lambda taken: self._distance(taken)[1])
        found = [self._moved(order, near, below=False)]
        if self._distance(found[0])[0]:
            found.append(self._moved(order, order[:high], below=True))
            found.append(self._moved(order, found[0], below=True))
        return min(found, key=self._distance)

    def _moved(self, order: Sequence[Unit], start: Sequence[Unit], *, below: bool) -> list[Unit]:
        """What moves lead to that come nearer, one after the other."""

        def distance(taken: Sequence[Unit]) -> tuple[bool, float]:
            above, far = self._distance(taken)
            return above and below, far

        best = list(start)
        reached = distance(best)
        while reached[1] > TOLERANCE * self.goal.wanted:
            found, taken = min(
                ((distance(move), move) for move in _moves(order, best)),
                key=lambda each: each[0],
                default=(reached, best),
            )
            if found >= reached:
                break
            best, reached = taken, found
        return best

    def _distance(self, taken: Sequence[Unit]) -> tuple[bool, float]:
        """Whether it costs too much, and how far it is from what is wanted."""
        cost, wanted = self.cost(taken), self.goal.wanted
        return cost > wanted * (1 + TOLERANCE), abs(cost - wanted)


def _moves(order: Sequence[Unit], taken: Sequence[Unit]) -> Iterator[list[Unit]]:
    """What is taken with one unit more, one fewer, or one group's unit in the place of another's."""
    gone = {id(unit) for unit in taken}
    last = {unit.group: unit for unit in taken}  # of each group the one that may stay after all
    following: dict[str, Unit] = {}  # and the next that may go
    for unit in order:
        if id(unit) not in gone:
            following.setdefault(unit.group, unit)
    for unit in following.values():
        yield [*taken, unit]
    for kept in last.values():
        without = [unit for unit in taken if unit is not kept]
        yield without
        if len(following) <= _PAIRED_GROUPS:
            yield from ([*without, unit] for unit in following.values() if unit.group != kept.group)


def removed(taken: Iterable[Unit]) -> np.ndarray:
    """Identities of all channels in the units."""
    return np.concatenate([np.empty(0, dtype=np.int64), *(unit.ids for unit in taken)])


def rounded(
    model: nn.Module,
    channels: Channels,
    groups: Iterable[Group],
    round_to: int | Literal["auto"],
    fits: Callable[[Plan], bool],
    off: Callable[[Plan], float],
    period: int = 0,
) -> Plan:
    """A plan that makes the widths of groups multiples: of the next below, and of the next above as far as the plan
    then `fits`, those first that are nearest to it.

    Below, the channels with the smallest weights go; above, those with the largest are doubled and share their readers'
    columns by halves, which changes no output. A group that is narrower than one multiple stays as it is. With "auto"
    multiples are those of this machine, and smaller ones where that ends far `off`, as a share of what is wanted. The
    model is not changed.
    """
    groups = list(groups)
    if round_to != "auto":
        return _rounded(model, channels, groups, {group.name: round_to for group in groups}, fits, period)
    tried: list[Plan] = []
    multiple = preferred_multiple()[0]
    while not tried or (multiple and off(tried[-1]) > FAR):
        blocks = {group.name: narrowed(multiple, group) for group in groups}
        tried.append(_rounded(model, channels, groups, blocks, fits, period))
        multiple //= 2
    return min(tried, key=off)


def _rounded(
    model: nn.Module,
    channels: Channels,
    groups: Sequence[Group],
    multiples: Mapping[str, int],
    fits: Callable[[Plan], bool],
    period: int,
) -> Plan:
    steps = {group.name: step_of(group, channels, multiples[group.name]) for group in groups}
    ragged = [group for group in groups if group.size % steps[group.name] and group.size > steps[group.name]]
    if not ragged:
        return Plan((), period)
    scores = l1(model, channels, Given()).values
    orders = {group.name: group.ids[np.argsort(scores[group.name], kind="stable")] for group in ragged}
    chosen = {group.name: _below(group, steps[group.name], orders[group.name]) for group in ragged}
    for group in sorted(ragged, key=lambda group: -group.size % steps[group.name] / steps[group.name]):
        if group.prune_only is None:
            tried = chosen | {group.name: _above(group, steps[group.name], orders[group.name])}
            chosen = tried if fits(_plan(tried, period)) else chosen
    return _plan(chosen, period)


def _plan(chosen: dict[str, list[Edit]], period: int) -> Plan:
    return Plan(tuple(edit for edits in chosen.values() for edit in edits), period)


def _below(group: Group, step: int, order: Ids) -> list[Edit]:
    return [Prune(group.name, tuple(sorted(order[: group.size % step].tolist())), f"widths are multiples of {step}")]


def _above(group: Group, step: int, order: Ids) -> list[Edit]:
    doubled = order[group.size - -group.size % step :].tolist()
    return [Insert(group.name, each, f"widths are multiples of {step}", columns="split") for each in doubled]
