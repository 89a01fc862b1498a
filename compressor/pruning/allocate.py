"""How many channels each group loses: in what order those of all groups go, so that every target costs least error."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.graph.channels import Channels
from compressor.pruning.obs import Curve
from compressor.pruning.price import Price, macs_price
from compressor.pruning.scores import Values, in_order

_AHEAD = 6  # cuts that are looked at, each twice as far, where the first of them alone would seem expensive


def ranks(
    channels: Channels,
    curves: Mapping[str, Curve],
    cuts: Mapping[str, Sequence[int]] | None = None,
    price: Price | None = None,
) -> dict[str, Values]:
    """For each group the place of every one of its `ids` in the order in which all channels go.

    Step by step the group goes on that adds the least error for what it saves of the price (multiply-adds where it is
    left out), at the widths that are left. `cuts` says how many channels of each group may be gone, rising from 0; any
    number where it is left out.
    """
    widths = Widths(channels, price or macs_price(channels))
    numbers = {group.name: number for number, group in enumerate(channels.free)}
    found = {name: np.full(len(curve.ids), np.inf) for name, curve in curves.items()}
    groups = {
        name: _Group(numbers[name], curve.errors, range(len(curve.errors)) if cuts is None else cuts[name])
        for name, curve in curves.items()
    }
    waiting = [(*group.next(widths), name) for name, group in groups.items()]
    heapq.heapify(waiting)
    place = 0
    while waiting:
        _, _, name = heapq.heappop(waiting)
        group = groups[name]
        slope, at = group.next(widths)
        if at == group.at:
            continue
        if waiting and slope > waiting[0][0]:  # it was worth more when other groups were wider
            heapq.heappush(waiting, (slope, at, name))
            continue
        gone, count = group.gone, group.cuts[at] - group.gone
        widths.remove(group.number, count)
        found[name][gone : gone + count] = np.arange(place, place + count)
        place += count
        group.at = at
        heapq.heappush(waiting, (*group.next(widths), name))
    return {
        group.name: in_order(found[group.name], curves[group.name].ids, group.ids)
        for group in channels.free
        if group.name in curves
    }


@dataclass
class _Group:
    """How far a group has gone: `cuts[at]` of its channels are gone."""

    number: int
    errors: NDArray[np.float64]
    cuts: Sequence[int]
    at: int = 0

    @property
    def gone(self) -> int:
        return self.cuts[self.at]

    def next(self, widths: "Widths") -> tuple[float, int]:
        """The least error for each multiply-add with which it can go on, and at which cut it then is; where it cannot,
        the one where it is.
        """
        places = [at for at in (self.at + (1 << power) for power in range(_AHEAD)) if at < len(self.cuts)]
        slopes = [
            (self.errors[self.cuts[at]] - self.errors[self.gone])
            / max(widths.saved(self.number, self.cuts[at] - self.gone), widths.least)
            for at in places
        ]
        return min(zip(map(float, slopes), places, strict=True), default=(np.inf, self.at))


class Widths:
    """The price while groups, by their numbers among the free ones, lose channels."""

    def __init__(self, channels: Channels, price: Price) -> None:
        owner = np.full(max(channels.next_id, price.next_id), -1, dtype=np.int64)
        first = np.zeros(len(channels.free), dtype=np.int64)
        for number, group in enumerate(channels.free):
            owner[group.ids], first[number] = number, group.ids[0]
        self.least = 1e-9 * price.whole()  # that a step is taken to save: where it saves nothing, it goes last
        self._costs: list[Callable[..., float]] = []
        self._counts: list[list[int]] = []  # of each term, how many channels its axes hold
        self._times: list[list[dict[int, int]]] = []  # and how often each channel of a group
        self._terms: list[list[int]] = [[] for _ in channels.free]
        for number, term in enumerate(price.terms):
            self._costs.append(term.cost)
            self._counts.append([len(axis) for axis in term.axes])
            self._times.append(
                [
                    {held: int(np.count_nonzero(axis == first[held])) for held in set(owner[axis].tolist()) - {-1}}
                    for axis in term.axes
                ]
            )
            for held in {group for times in self._times[-1] for group in times}:
                self._terms[held].append(number)

    def saved(self, group: int, count: int) -> float:
        """How much of the price goes with so many more channels of a group."""
        saved = 0.0
        for number in self._terms[group]:
            counts, times = self._counts[number], self._times[number]
            after = [held - count * each.get(group, 0) for held, each in zip(counts, times, strict=True)]
            saved += self._costs[number](*counts) - self._costs[number](*after)
        return saved

    def remove(self, group: int, count: int) -> None:
        """Take channels of a group away."""
        for number in self._terms[group]:
            for axis, times in enumerate(self._times[number]):
                self._counts[number][axis] -= count * times.get(group, 0)
