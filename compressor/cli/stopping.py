"""SIGINT and SIGTERM outside of training, where there is no step to finish: stop at once, and say how to go on."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143  # what a shell makes of SIGINT and SIGTERM


@dataclass
class Stopped:
    """With what exit code a command leaves that was stopped, and what had begun before it."""

    code: int = INTERRUPTED
    earlier: int = 0  # runs that this process began before the command

    def how_to_go_on(self) -> str:
        """The command that finishes what this one began, with a semicolon before it; nothing where it began no run."""
        done = ("report.json", "comparison.html")
        folders = [each for each in _begun()[self.earlier :] if not any((each / name).exists() for name in done)]
        return f"; to go on: compressor resume {folders[0]}" if folders else ""  # a sweep's comes before its runs'


@contextmanager
def stopping() -> Iterator[Stopped]:
    """Take SIGTERM like Ctrl-C, so that unfinished files are removed; a SIGTERM that is ignored stays ignored."""
    stopped = Stopped(earlier=len(_begun()))
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield stopped
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        stopped.code = TERMINATED
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _begun() -> list[Path]:
    lock = sys.modules.get("compressor.runs.lock")  # not imported where no run got so far
    return [] if lock is None else list(lock.begun_folders())
