"""Remember which architecture files their owner has named, so that a checkpoint cannot name one by itself.

A checkpoint of an architecture that is a Python file records the file's path and hash. Both come from whoever made
the checkpoint, so neither says that running the file is wanted: a folder from elsewhere may hold a checkpoint and a
script that match. What is wanted is what was once given as --arch on this machine: path, function and hash, kept in
$XDG_STATE_HOME/compressor/architectures.json (~/.local/state where that is not set).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from compressor.errors import FileError
from compressor.files import write_whole


def remember(path: Path, function: str, sha256: str) -> None:
    """Note that `function` of the file `path`, with this content, was asked for by name.

    Where nothing can be written (no home folder) nothing is kept: --arch is then needed each time.
    """
    entries = _read()
    entry = [str(path.resolve()), function, sha256]
    if entry in entries:
        return
    with contextlib.suppress(FileError, RuntimeError):
        write_whole(_store(), json.dumps([*entries, entry], indent=1))


def is_known(path: Path, function: str, sha256: str) -> bool:
    """Whether `function` of the file `path` with this content was given as --arch before."""
    try:
        place = path.resolve()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, a link to itself
        return False
    return [str(place), function, sha256] in _read()


def state_folder() -> Path:
    """Where this machine's list is kept; it may not exist yet."""
    folder = os.environ.get("XDG_STATE_HOME")
    return (Path(folder) if folder else Path.home() / ".local" / "state") / "compressor"


def _store() -> Path:
    return state_folder() / "architectures.json"


def _read() -> list[list[str]]:
    try:
        entries = json.loads(_store().read_text())
    except (OSError, RuntimeError, ValueError):
        return []
    return entries if isinstance(entries, list) else []
