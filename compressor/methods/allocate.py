"""How many channels each group loses: in what order those of all groups go, so that every target costs least error."""

import heapq
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compressor.graph.channels import Channels, Ids
from compressor.methods.scores import Values, in_order

_JUMPS = (1, 2, 4, 8, 16, 32)  # channels that go together, where the first of them alone would seem expensive


def ranks(
    channels: Channels, orders: Mapping[str, Ids], errors: Mapping[str, NDArray[np.float64]]
) -> dict[str, Values]:
    """For each group the place of every one of its `ids` in the order in which all channels go.

    Step by step the group goes on that adds the least error for each multiply-add that it saves, at the widths that are
    left. `orders` holds each group's identities as they go, `errors` the error when so many are gone.
    """
    widths = Widths(channels)
    numbers = {group.name: number for number, group in enumerate(channels.free)}
    gone = dict.fromkeys(errors, 0)
    waiting = [(*_next(widths, numbers[name], errors[name], 0), name) for name in errors]
    heapq.heapify(waiting)
    found = {name: np.full(len(order), np.inf) for name, order in orders.items()}
    place = 0
    while waiting:
        _, _, name = heapq.heappop(waiting)
        slope, count = _next(widths, numbers[name], errors[name], gone[name])
        if count == 0:
            continue
        if waiting and slope > waiting[0][0]:  # it was worth more when other groups were wider
            heapq.heappush(waiting, (slope, count, name))
            continue
        widths.remove(numbers[name], count)
        found[name][gone[name] : gone[name] + count] = np.arange(place, place + count)
        place += count
        gone[name] += count
        heapq.heappush(waiting, (*_next(widths, numbers[name], errors[name], gone[name]), name))
    return {
        group.name: in_order(found[group.name], orders[group.name], group.ids)
        for group in channels.free
        if group.name in orders
    }


def _next(widths: "Widths", number: int, errors: NDArray[np.float64], gone: int) -> tuple[float, int]:
    """The least error for each multiply-add with which a group can go on, and with how many channels; 0: with none."""
    jumps = [jump for jump in _JUMPS if gone + jump < len(errors)]
    slopes = [(errors[gone + jump] - errors[gone]) / max(widths.saved(number, jump), 1) for jump in jumps]
    return min(zip(map(float, slopes), jumps, strict=True), default=(np.inf, 0))


class Widths:
    """Multiply-adds while groups, by their numbers among the free ones, lose channels."""

    def __init__(self, channels: Channels) -> None:
        owner = np.full(channels.next_id, -1, dtype=np.int64)
        first = np.zeros(len(channels.free), dtype=np.int64)
        for number, group in enumerate(channels.free):
            owner[group.ids], first[number] = number, group.ids[0]
        self._factors: list[int] = []
        self._counts: list[list[int]] = []  # of each cost, how many channels its axes hold
        self._times: list[list[dict[int, int]]] = []  # and how often each channel of a group
        self._costs: list[list[int]] = [[] for _ in channels.free]
        for number, cost in enumerate(channels.costs):
            self._factors.append(cost.factor)
            self._counts.append([len(axis) for axis in cost.axes])
            self._times.append(
                [
                    {held: int(np.count_nonzero(axis == first[held])) for held in set(owner[axis].tolist()) - {-1}}
                    for axis in cost.axes
                ]
            )
            for held in {group for times in self._times[-1] for group in times}:
                self._costs[held].append(number)

    def saved(self, group: int, count: int) -> int:
        """How many multiply-adds go with so many more channels of a group."""
        saved = 0
        for number in self._costs[group]:
            before = after = self._factors[number]
            for held, times in zip(self._counts[number], self._times[number], strict=True):
                before *= held
                after *= held - count * times.get(group, 0)
            saved += before - after
        return saved

    def remove(self, group: int, count: int) -> None:
        """Take channels of a group away."""
        for number in self._costs[group]:
            for axis, times in enumerate(self._times[number]):
                self._counts[number][axis] -= count * times.get(group, 0)
