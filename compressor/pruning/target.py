"""Find how much of an order of removal meets a target of multiply-adds, predicted without touching the model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.errors import ModelError, UsageError
from compressor.graph.channels import Channels
from compressor.pruning.removal import Unit

TOLERANCE = 0.01  # of the target: how near counts as met
_PAIRED_GROUPS = 40  # of networks with more than that no pairs are tried: they have steps small enough


@dataclass(frozen=True)
class Met:
    """What to take, the multiply-adds that remain, and a line for the user where that is off the target."""

    taken: list[Unit]
    macs: int
    note: str | None = None
    off: float = 0.0  # how far, as a share of the target


def meet(channels: Channels, fixed: Sequence[Unit], order: Sequence[Unit], target: float) -> Met:
    """The units of `order` that come nearest to the target when the `fixed` ones are gone as well.

    `target` is a share of the model's multiply-adds up to 1, a number of them above.

    Raises:
        UsageError: the model has no more than that already.
        ModelError: it has more even when all units are gone.
    """
    search = _Search(channels, fixed)
    whole = channels.macs()
    wanted = target * whole if target <= 1 else target
    if wanted >= whole:
        raise UsageError(f"the model has {whole:,} MACs, no more than the target of {wanted:,.0f}: ask for fewer")
    least = search.macs(order)
    if least > wanted * (1 + TOLERANCE):
        raise ModelError(
            f"{wanted:,.0f} MACs ({wanted / whole:.1%}) cannot be reached: with everything gone that may be pruned "
            f"{least:,} ({least / whole:.1%}) remain; ask for more, or loosen min_channels, keep or single "
            "layers' ratios"
        )
    taken, macs = search.nearest(order, wanted)
    off = macs / wanted - 1
    if abs(off) <= TOLERANCE:
        return Met(taken, macs)
    return Met(
        taken,
        macs,
        f"the target of {wanted:,.0f} MACs is not met within {TOLERANCE:.0%}: channels go in whole units, and "
        f"the nearest found is {macs:,} ({off:+.1%})",
        abs(off),
    )


class _Search:
    """Costs of parts of an order, on top of what is gone anyway."""

    def __init__(self, channels: Channels, fixed: Sequence[Unit]) -> None:
        self._channels = channels
        self._fixed = removed(fixed)

    def macs(self, taken: Iterable[Unit]) -> int:
        return self._channels.macs(np.concatenate([self._fixed, removed(taken)]).tolist())

    def nearest(self, order: Sequence[Unit], wanted: float) -> tuple[list[Unit], int]:
        """The first units of the order, as many as come nearest; where that is not near enough, some more or fewer.

        Fewer and more is tried one unit of a group at a time, then one group's against another's, as long as it helps.
        """
        low, high = 0, len(order)  # `high` units are below what is wanted, `low` are not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.macs(order[:middle]) >= wanted else (low, middle)
        best = min((list(order[:low]), list(order[:high])), key=lambda taken: abs(self.macs(taken) - wanted))
        macs = self.macs(best)
        while abs(macs - wanted) > TOLERANCE * wanted:
            moves = [(taken, self.macs(taken)) for taken in _moves(order, best)]
            taken, found = min(moves, key=lambda move: abs(move[1] - wanted), default=(best, macs))
            if abs(found - wanted) >= abs(macs - wanted):
                break
            best, macs = taken, found
        return best, macs


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
