"""How far a step has come that takes long, told to the command that listens, wherever the step is made."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]  # what is counted, how many are done, of how many

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Steps inside are told to `listener`."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def progress(what: str, done: int, total: int) -> None:
    """Tell how far a step has come."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(what, done, total)


def counted(what: str, things: Iterable[T], total: int, size: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
    """The things, each told once it is done with; `size` is how much of the total it makes."""
    done = 0
    progress(what, done, total)
    for each in things:
        yield each
        done += size(each)
        progress(what, done, total)
