"""A user's own method: a function of a file, or one in memory, that scores channels."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from compressor.errors import CompressorError, UsageError
from compressor.graph.channels import Channels
from compressor.loading import code
from compressor.pruning.catalogue import is_own
from compressor.pruning.scores import Given, Score, Scores
from compressor.runs.own import parts


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
