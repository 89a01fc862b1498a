"""A user's own code that a setting names, "FILE.py:NAME", or an object: a task, or a function that scores channels."""

import itertools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import CompressorError, FileError, UsageError
from compressor.graph.channels import Channels
from compressor.loading import code
from compressor.pruning.scores import Given, Score, Scores
from compressor.pruning.settings import is_own
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
        raise UsageError(f"there is no file {path}: give `task` FILE.py:CLASS; compressor new-task FILE.py writes one")
    found = code.load(path, name, expected=None, named=True).function
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise FileError(f"the task {text} cannot be constructed: {code.told(error, path)}") from error
    return OwnTask(made, text, partial(_told, path))


def _told(path: Path, error: Exception) -> str:
    return code.told(error, path)


def criterion(method: str | Score) -> Score | None:
    """A function itself, or the one that "FILE.py:score" names, `(model, channels, given) -> Scores`; None for a method
    of ours.

    Raises:
        UsageError: there is no such file or function.
        FileError: importing the file fails.
    """
    if not isinstance(method, str):
        if not callable(method):
            raise UsageError(f"method is {method!r}, and has to be a text or a function")
        return method
    if not is_own(method):
        return None
    path, function = _parts(method)
    if not path.is_file():
        raise UsageError(f"there is no file {path}: give `method` FILE.py:FUNCTION, such as mine.py:score")
    found = code.load(path, function, expected=None, named=True).function

    def score(model: nn.Module, channels: Channels, given: Given) -> Scores:
        try:
            scores: Scores = found(model, channels, given)
        except CompressorError:
            raise
        except Exception as error:
            raise UsageError(f"{method} failed: {code.told(error, path)}") from error
        return scores

    return score


def in_words(score: Callable[..., object]) -> str:
    """What a function in memory is called in a report."""
    name = getattr(score, "__qualname__", type(score).__qualname__)
    return f"{getattr(score, '__module__', 'function')}:{name}"


def _parts(method: str) -> tuple[Path, str]:
    found = parts(method)
    if found is None:
        raise UsageError(f"method {method[:200]!r} is neither one of ours nor FILE.py:FUNCTION, such as mine.py:score")
    return found
