"""One process at a time writes to a run's folder; the lock ends with its process, however that ended."""

import contextlib
import os
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import UsageError

LOCK = ".lock"


@dataclass
class _Hold:
    """A folder that this process writes to; by several objects, where one run follows another in a Python program."""

    descriptor: int
    owners: int = 0


_held: dict[Path, _Hold] = {}
_begun: list[Path] = []  # folders as they were named, in the order of time


class FolderLock:
    """Held from its making until it is released, collected or the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock of an existing folder.

        Raises:
            UsageError: another process writes to the folder.
            OSError: the folder cannot be written.
        """
        key = folder.resolve()
        if key not in _held:
            _held[key] = _Hold(_taken(folder))
        _held[key].owners += 1
        _begun.append(folder)
        self._release = weakref.finalize(self, _let_go, key, os.getpid())

    def release(self) -> None:
        """Let the next run in."""
        self._release()


def begun_folders() -> list[Path]:
    """Folders that runs of this process wrote to, for the message of how to resume."""
    return list(_begun)


def _taken(folder: Path) -> int:
    """A descriptor of the lock's file, locked."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(descriptor):
            owner = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise UsageError(
                f"another run is writing to {folder} (process {owner}): wait for it, or give another `out`"
            )
        if _is_still(descriptor, path):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        os.close(descriptor)  # the run before removed its file between our opening and locking it


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _let_go(key: Path, process: int) -> None:
    if os.getpid() != process:  # a worker that was forked has a copy of everything but the lock
        return
    hold = _held[key]
    hold.owners -= 1
    if not hold.owners:
        del _held[key]
        with contextlib.suppress(OSError):  # the folder may be gone
            (key / LOCK).unlink(missing_ok=True)
        os.close(hold.descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        # Of the POSIX kind, which a forked worker does not share: it may outlive a killed run for seconds.
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
