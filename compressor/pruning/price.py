"""What a network costs while channels go, in whatever a target is given: multiply-adds, milliseconds, megabytes."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from compressor.errors import ModelError, UsageError
from compressor.graph.channels import Channels, Counts, Ids

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Term:
    """A part of the cost: a function of the number of channels in each of its axes."""

    axes: tuple[Ids, ...]
    cost: Callable[..., float]


@dataclass(frozen=True)
class Price:
    """A cost as a sum of terms, and what does not depend on channels."""

    unit: str
    terms: tuple[Term, ...]
    fixed: float = 0.0

    @cached_property
    def next_id(self) -> int:
        """Above every channel of its axes."""
        axes = {id(axis): axis for term in self.terms for axis in term.axes}
        return 1 + max((int(axis.max()) for axis in axes.values() if axis.size), default=-1)

    def whole(self) -> float:
        """Of the network as it is."""
        return self.without(())

    def without(self, removed: Iterable[int]) -> float:
        """Of the network without these channels."""
        gone = np.fromiter(removed, dtype=np.int64)
        stays = np.ones(self.next_id, dtype=np.int64)
        stays[gone[gone < self.next_id]] = 0
        counts = Counts(stays)
        return float(self.fixed + sum(term.cost(*map(counts.of, term.axes)) for term in self.terms))


def macs_price(channels: Channels) -> Price:
    """Multiply-adds for one image."""
    return Price("MACs", tuple(Term(cost.axes, _product(cost.factor)) for cost in channels.costs))


def size_price(channels: Channels) -> Price:
    """Megabytes of the parameters in float32, buffers not counted."""
    terms = []
    for name in sorted(channels.counted):
        shape = channels.shapes[name]
        dims = [channels.identities.get((name, dim)) for dim in range(len(shape))]
        constant = math.prod(size for ids, size in zip(dims, shape, strict=True) if ids is None)
        axes = tuple(ids for ids in dims if ids is not None)
        terms.append(Term(axes, _product(constant * BYTES / 1e6)))
    return Price("MB", tuple(terms))


def memory_prices(channels: Channels) -> list[Price]:
    """Megabytes of the activations of one image that live at once, at every moment after which one of them goes."""
    terms = {id(each): Term(each.axes, _product(each.factor / 1e6)) for each in channels.held}
    moments = sorted({each.born for each in channels.held})
    found = []
    for at, following in itertools.pairwise([*moments, math.inf]):
        living = [each for each in channels.held if each.born <= at <= each.last]
        if any(each.last < following for each in living):  # else more live at the next
            found.append(Price("MB of activations", tuple(terms[id(each)] for each in living)))
    return found


def peak_memory(channels: Channels, removed: Collection[int] = ()) -> float:
    """Megabytes of activations at the moment that needs most, without these channels."""
    return max(price.without(removed) for price in memory_prices(channels))


def memory_goals(channels: Channels, wanted: float) -> list["Goal"]:
    """One for every moment that needs more. Raises UsageError where none does."""
    prices = memory_prices(channels)
    Goal.at(max(prices, key=Price.whole), wanted)
    return [Goal(price, wanted) for price in prices if price.whole() > wanted]


def _product(factor: float) -> Callable[..., float]:
    return lambda *counts: factor * math.prod(counts)


@dataclass(frozen=True)
class Goal:
    """What a price is to fall to."""

    price: Price
    wanted: float

    @classmethod
    def of(cls, price: Price, target: float) -> "Goal":
        """A target as users give it: a share of the whole up to 1, else in the price's unit. Raises UsageError where
        the network costs no more already.
        """
        whole = price.whole()
        return cls.at(price, target * whole if target <= 1 else target)

    @classmethod
    def at(cls, price: Price, wanted: float) -> "Goal":
        """A target in the price's unit. Raises UsageError where the network costs no more already."""
        whole = price.whole()
        if wanted >= whole:
            has, most = in_words(whole, price.unit), in_words(wanted, price.unit)
            raise UsageError(f"the model has {has}, no more than the target of {most}: ask for less")
        return cls(price, wanted)


def in_words(amount: float, unit: str) -> str:
    """An amount with its unit: 1,234,567 MACs, 3.21 ms."""
    return f"{amount:,.0f} {unit}" if unit == "MACs" else f"{amount:.3g} {unit}"


def scaled(price: Price, factor: float) -> Price:
    """The same, times a factor."""
    terms = tuple(Term(term.axes, _scaled(term.cost, factor)) for term in price.terms)
    return Price(price.unit, terms, price.fixed * factor)


def combined(goals: Sequence[Goal]) -> Price | None:
    """One price for several goals: each in shares of what it wants saved, so that the farthest leads; multiply-adds
    without any.
    """
    if len(goals) < 2:
        return goals[0].price if goals else None
    shares = (scaled(goal.price, 1 / max(goal.price.whole() - goal.wanted, 1e-12)) for goal in goals)
    return Price("share", tuple(term for share in shares for term in share.terms))


def _scaled(cost: Callable[..., float], share: float) -> Callable[..., float]:
    return lambda *counts: share * cost(*counts)


def unreachable(goal: Goal, least: float, frozen: Iterable[str]) -> ModelError:
    """What to raise where a goal is missed with all gone that may go; `frozen` are the reasons why the rest stays."""
    whole, unit = goal.price.whole(), goal.price.unit
    why = "; ".join(frozen)
    return ModelError(
        f"{in_words(goal.wanted, unit)} ({goal.wanted / whole:.1%}) cannot be reached: with everything gone that may "
        f"be pruned {in_words(least, unit)} ({least / whole:.1%}) remain; ask for more, or loosen `min_channels`, "
        f"`keep` or single layers' ratios{'; frozen: ' + why if why else ''}"
    )
