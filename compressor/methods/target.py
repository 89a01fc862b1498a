"""Find how much of an order of removal meets a target of multiply-adds, predicted without touching the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.errors import ModelError, UsageError
from compressor.graph.channels import Channels
from compressor.methods.removal import Unit

TOLERANCE = 0.01  # of the target: how near counts as met


@dataclass(frozen=True)
class Met:
    """What to take, the multiply-adds that remain, and a line for the user where that is off the target."""

    taken: list[Unit]
    macs: int
    note: str | None


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
            f"{least:,} ({least / whole:.1%}) remain; ask for more, or loosen min_channels, round_to, keep or single "
            "layers' ratios"
        )
    taken, macs = search.nearest(order, wanted)
    off = macs / wanted - 1
    if abs(off) <= TOLERANCE:
        return Met(taken, macs, None)
    return Met(
        taken,
        macs,
        f"the target of {wanted:,.0f} MACs cannot be met within {TOLERANCE:.0%}: channels go in whole units, and the "
        f"nearest is {macs:,} ({off:+.1%})",
    )


class _Search:
    """Costs of prefixes of an order, on top of what is gone anyway."""

    def __init__(self, channels: Channels, fixed: Sequence[Unit]) -> None:
        self._channels = channels
        self._fixed = removed(fixed)

    def macs(self, taken: Iterable[Unit]) -> int:
        return self._channels.macs(np.concatenate([self._fixed, removed(taken)]).tolist())

    def nearest(self, order: Sequence[Unit], wanted: float) -> tuple[list[Unit], int]:
        """The longest prefix that stays above the target, and then whatever still brings it nearer."""
        low, high = 0, len(order)  # the prefix of `low` units is above the target, or empty
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.macs(order[:middle]) >= wanted else (low, middle)
        taken = list(order[:low])
        macs = self.macs(taken)
        refused: set[str] = set()  # groups whose next unit takes too much: those after it have to wait
        for unit in order[low:]:
            if abs(macs - wanted) <= TOLERANCE * wanted / 10:
                break
            if unit.group in refused:
                continue
            tried = self.macs([*taken, unit])
            if abs(tried - wanted) < abs(macs - wanted):
                taken.append(unit)
                macs = tried
            else:
                refused.add(unit.group)
        return taken, macs


def removed(taken: Iterable[Unit]) -> np.ndarray:
    """Identities of all channels in the units."""
    return np.concatenate([np.empty(0, dtype=np.int64), *(unit.ids for unit in taken)])
