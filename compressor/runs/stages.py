"""Events of a run, besides those of training, and the callback that gets them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compressor.training.events import Event, NoteEvent


@dataclass(frozen=True)
class Stage:
    """Something begins that takes a while, in a few words."""

    text: str
    epochs: int = 0  # of the training that begins; 0: not known


@dataclass(frozen=True)
class PeriodEvent:
    """A method has judged the network and changed it; `row` is what joins the metrics, `text` says it in a line."""

    row: dict[str, Any]
    text: str


@dataclass(frozen=True)
class PeriodStep:
    """A step within one of a method's periods is done."""

    period: int
    step: int
    steps: int


@dataclass(frozen=True)
class PartEvent:
    """Of a stage that takes long, so many parts are done."""

    text: str
    done: int
    total: int


RunEvent = Event | Stage | PeriodEvent | PeriodStep | PartEvent
Callback = Callable[[RunEvent], None]


def silent(event: RunEvent) -> None:
    """Ignore the event."""


def note_all(notes: list[str] | tuple[str, ...], tell: Callback) -> None:
    """Report every line."""
    for text in notes:
        tell(NoteEvent(text))


def parts(text: str, tell: Callback) -> Callable[[int, int], None]:
    """Reports that so many parts of a stage, of so many, are done."""
    return lambda done, total: tell(PartEvent(text, done, total))
