"""Find how much of an order of removal meets a target, predicted without touching the model."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.graph.channels import Channels
from compressor.pruning.price import Goal, in_words, unreachable
from compressor.pruning.removal import Unit

TOLERANCE = 0.01  # of the target: how near counts as met
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
