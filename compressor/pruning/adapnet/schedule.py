"""AdapNet's clocks: the threshold that falls, the learning rate that halves, the period, and when structure is done."""

import math
from collections.abc import Sequence

from compressor.errors import UsageError
from compressor.pruning.adapnet.maps import REC_BATCHES
from compressor.pruning.adapnet.settings import AdapNetSettings

BETA_FLOOR = 0.18  # of the threshold (table 2)
STOP_FILTERS, STOP_PERIODS = 3, 2  # fewer filters in each of so many periods: the structure is done
# The paper's ratio on CIFAR-10: 391 steps an epoch, periods of 150.
PERIODS_PER_EPOCH = 2.6
FEWEST_PERIODS = 10  # of the phase, where it is of few epochs


def startup_epochs(settings: AdapNetSettings, *, trained: bool) -> int:
    """Epochs of plain training before the structure changes: the user's number, else 0 for a trained network."""
    if settings.startup_epochs is not None:
        return settings.startup_epochs
    return 0 if trained else settings.startup_untrained


def period_steps(settings: AdapNetSettings, steps_per_epoch: int) -> int:
    """Optimizer steps in one period (the paper's LSEP)."""
    if settings.lsep is not None:
        return settings.lsep
    if settings.max_epochs * PERIODS_PER_EPOCH < FEWEST_PERIODS:
        return max(settings.max_epochs * steps_per_epoch // FEWEST_PERIODS, REC_BATCHES)
    return min(max(round(steps_per_epoch / PERIODS_PER_EPOCH), 20), 150)


def recording_steps(lsep: int, batches: int) -> tuple[int, ...]:
    """The steps of a period, from 0, whose batch is recorded: `batches` of them, evenly spread, the last one too."""
    return tuple(sorted({max((j + 1) * lsep // batches - 1, 0) for j in range(batches)}))


def beta(settings: AdapNetSettings, epoch: int) -> float:
    """The threshold of the chi-square tests in epoch `epoch` of the second phase.

    Reference: table 2. A shorter second phase takes the paper's twelve steps faster, so that it too reaches the floor.
    """
    every = max(1, round(settings.max_epochs / 12))
    return max(BETA_FLOOR, settings.beta_start - settings.beta_step * (epoch // every))


def first_epoch(settings: AdapNetSettings, *, trained: bool) -> int:
    """Where the run enters the learning-rate schedule: a trained network as if it came from the start-up phase."""
    return settings.lr_trained_epoch if trained else 0


def milestones(settings: AdapNetSettings, last_epoch: int) -> tuple[int, ...]:
    """The epochs, all phases counted, at which the learning rate halves. Reference: section 4."""
    return tuple(range(settings.lr_halve_every, last_epoch + 1, settings.lr_halve_every))


def should_stop(settings: AdapNetSettings, removed: Sequence[int], epoch: int) -> bool:
    """Whether the second phase ends: fewer than three filters removed in each of the last two periods.

    `removed` counts, per period so far, the filters newly frozen, merged away or found dead. Inserted filters are not
    subtracted. The rule is asked only after a quarter of the epochs: at the first thresholds next to nothing qualifies.
    Reference: section 3.
    """
    if epoch >= settings.max_epochs:
        return True
    recent = removed[-STOP_PERIODS:]
    still = len(recent) == STOP_PERIODS and all(count < STOP_FILTERS for count in recent)
    return still and epoch >= math.ceil(settings.max_epochs / 4)


def check_period(settings: AdapNetSettings, steps_per_epoch: int) -> None:
    """Raise UsageError when the second phase is too short for one filter to be removed.

    A filter is judged when it has counts of enough periods, and is removed, after one more in which it is frozen.
    """
    lsep = period_steps(settings, steps_per_epoch)
    needed = (2 if settings.freeze else 1) + 1
    periods = settings.max_epochs * steps_per_epoch // lsep
    if periods < needed:
        longest = settings.max_epochs * steps_per_epoch // needed
        shorter = f"give `lsep` {longest} or less, or " if longest else "give "
        more = -(-needed * lsep // steps_per_epoch)
        raise UsageError(
            f"a period of {lsep} steps fits {periods} times into {settings.max_epochs} epochs of {steps_per_epoch} "
            f"steps, and it takes {needed} until a filter goes: {shorter}`max_epochs` {more} or more"
        )
