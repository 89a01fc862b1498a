"""A user's own method: a function of a file, or one in memory, that scores channels."""

import re
from collections.abc import Callable
from pathlib import Path

from torch import nn

from compressor.errors import CompressorError, UsageError
from compressor.graph.channels import Channels
from compressor.loading import code
from compressor.pruning.catalogue import is_own
from compressor.pruning.scores import Given, Score, Scores

_FORM = re.compile(r"(.+\.py):(\w+)")


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
    found = code.load(Path(path), function, expected=None, named=True).function

    def score(model: nn.Module, channels: Channels, given: Given) -> Scores:
        try:
            scores: Scores = found(model, channels, given)
        except CompressorError:
            raise
        except Exception as error:
            raise UsageError(f"{method} failed: {code.told(error, Path(path))}") from error
        return scores

    return score


def may_run(method: str) -> bool:
    """Whether a method that a run's record names may run: it is ours, or was named on this machine as it is now."""
    if not is_own(method):
        return True
    path, function = _parts(method)
    return code.was_named(Path(path), function)


def in_words(score: Callable[..., object]) -> str:
    """What a function in memory is called in a report."""
    name = getattr(score, "__qualname__", type(score).__qualname__)
    return f"{getattr(score, '__module__', 'function')}:{name}"


def _parts(method: str) -> tuple[str, str]:
    match = _FORM.fullmatch(method)
    if match is None:
        raise UsageError(f"method {method[:200]!r} is neither one of ours nor FILE.py:FUNCTION, such as mine.py:score")
    return match[1], match[2]
