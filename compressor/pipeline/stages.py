"""What a run tells whoever listens, beside what training tells."""

from collections.abc import Callable
from dataclasses import dataclass

from compressor.training.events import Event, NoteEvent


@dataclass(frozen=True)
class Stage:
    """Something begins that takes a while, in a few words."""

    text: str


Tell = Callable[[Event | Stage], None]


def silent(event: Event | Stage) -> None:
    """Tell nobody."""


def note_all(notes: list[str] | tuple[str, ...], tell: Tell) -> None:
    """Tell every line."""
    for text in notes:
        tell(NoteEvent(text))
