"""A user's own code that a setting names, "FILE.py:NAME": which text is such a name, and the task that one is."""

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

from compressor.errors import FileError, UsageError
from compressor.loading import code
from compressor.training.own_task import OwnTask

_FORM = re.compile(r"(.+\.py):(\w+)")
_IN_MEMORY = "object:"
_OBJECTS: dict[str, Any] = {}  # tasks of this process by what settings call them


def parts(text: str) -> tuple[Path, str] | None:
    """File and name of a text that names code; None for any other."""
    match = _FORM.fullmatch(text)
    return None if match is None else (Path(match[1]).expanduser(), match[2])


def may_run(text: str) -> bool:
    """Whether code that a run's record names may run: it was named on this machine, as it is now."""
    named = parts(text)
    return named is None or code.was_named(*named)


def named(task: object) -> str:
    """What settings call a task that is an object of this process."""
    known = next((name for name, each in _OBJECTS.items() if each is task), None)
    if known is None:
        kind = type(task)
        names = (f"{_IN_MEMORY}{kind.__module__}.{kind.__qualname__}-{number}" for number in itertools.count(1))
        known = next(name for name in names if name not in _OBJECTS)
        _OBJECTS[known] = task
    return known


def task_of(text: str) -> OwnTask | None:
    """The task that a setting names; None where it names a data set.

    Raises:
        UsageError: there is no such file or class, it cannot be constructed, or it is no task.
        FileError: importing the file fails.
        DataError: a split holds nothing.
    """
    if text.startswith(_IN_MEMORY):
        if text not in _OBJECTS:
            raise UsageError(f"{text} was an object of another process: start the run again, with the object")
        return OwnTask(_OBJECTS[text], text.removeprefix(_IN_MEMORY))
    place = parts(text)
    if place is None:
        return None
    path, name = place
    if not path.is_file():
        raise UsageError(f"there is no file {path}: give --task FILE.py:CLASS; compressor new-task FILE.py writes one")
    found = code.load(path, name, expected=None, named=True).function
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise FileError(f"the task {text} cannot be constructed: {code.told(error, path)}") from error
    return OwnTask(made, text, partial(_told, path))


def _told(path: Path, error: Exception) -> str:
    return code.told(error, path)
