"""What the training loop reports, as plain data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BatchEvent:
    """Progress within an epoch, at most every `log_seconds`; figures are of the images since the event before."""

    epoch: int
    epochs: int  # at which the phase ends; both count as the settings' first_epoch does
    batch: int  # batches done in this epoch
    batches: int
    loss: float
    top1: float | None  # None where the step does not count right answers
    images_per_second: float
    seconds_left: float  # of the phase, as fast as it went since the event before
    lr: float


@dataclass(frozen=True)
class EpochEvent:
    """An epoch has ended; `row` is what joined the history, `epochs` how many there will be (0: nobody knows)."""

    row: dict[str, Any]
    epochs: int = 0


@dataclass(frozen=True)
class NoteEvent:
    """Something happened that the user should know, in one line."""

    text: str


Event = BatchEvent | EpochEvent | NoteEvent
Listener = Callable[[Event], None] | None  # None: nobody hears
