"""SIGINT and SIGTERM as a wish to stop that the training loop grants at a good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from compressor.errors import CompressorError


class Interrupted(CompressorError):
    """A run that a signal stopped after a whole step; `exit_code` is the shell's, 128 + the signal's number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number
        self.exit_code = 128 + number


@dataclass
class Signals:
    """The first signal that came while signals were deferred."""

    received: int | None = None


@contextmanager
def deferred_signals() -> Iterator[Signals]:
    """Note SIGINT and SIGTERM instead of dying of them; a second SIGINT stops at once (KeyboardInterrupt).

    Outside the main thread, where Python delivers no signals, nothing is noted. A signal that is ignored (a job under
    nohup) stays ignored.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        if signals.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.received = signals.received or number

    kept = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, note) for number in kept}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
