"""The errors a user can cause, by what the user can do about them, and how a message quotes what is not ours.

Anything else that is raised is a bug and keeps its traceback.
"""

import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about an unknown name: " (did you mean layer1?)", or nothing where none is similar."""
    import difflib  # for errors only

    near = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def cause(error: BaseException) -> str:
    """The first line of what an error says; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class CompressorError(Exception):
    """A run that cannot go on for a reason outside the code; the message is one line: what is wrong, what to do."""

    exit_code = 1


class Elsewhere(CompressorError):
    """Another process of the same run met an error and tells it."""


class UsageError(CompressorError):
    """The command is wrong: change its flags or arguments."""

    exit_code = 2


class FileError(CompressorError):
    """A file is missing, broken, does not fit or is not trusted: give another file."""


class ModelError(CompressorError):
    """The network cannot take what was asked of it: ask for something else."""


class DataError(CompressorError):
    """A data set is missing, empty or does not fit the model: give other data."""


def printable(text: str) -> str:
    """The text with escapes in place of what controls a terminal or turns the direction of writing.

    Line breaks stay; ESC becomes `\\x1b`, U+202E `\\u202e`.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def shown(text: str, most: int = 160) -> str:
    """A file's own text for a message: any character may be in it, and any number of them."""
    line = printable(text[: most + 1]).replace("\n", "\\n")
    return line if len(line) <= most else f"{line[: most - 10]}..."


def listed(names: Iterable[str], most: int = 6) -> str:
    """The first few names of a file or a model in one line, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def first_line(error: BaseException, most: int = 400) -> str:
    """What an exception says in its first line, or its kind where it says nothing; without ONNX Runtime's codes."""
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)[:10_000])
    lines = (line.strip() for line in said.splitlines())
    return shown(next(filter(None, lines), type(error).__name__), most)


_KINDS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError),
    *(ValueError, struct.error, zipfile.BadZipFile),
)


@contextmanager
def one_line(
    start: str, end: str = "): copy or download it again", kind: type[Exception] = FileError
) -> Iterator[None]:
    """Raise `kind` in place of an error that damaged data cause; what happened stands between `start` and `end`."""
    try:
        yield
    except _KINDS as error:
        if isinstance(error, CompressorError | kind):
            raise
        name, told = type(error).__name__, first_line(error)
        if isinstance(error, RecursionError):
            raise kind(f"{start}its parts lie too deep in one another{end}") from error
        told = told if isinstance(error, ValueError | zipfile.BadZipFile) or told == name else f"{name}: {told}"
        raise kind(f"{start}{told}{end}") from error


@contextmanager
def misfit(what: str) -> Iterator[None]:
    """Raise FileError in place of what a checkpoint's step causes where `what` it makes "do" or "does" not fit."""
    try:
        yield
    except FileError:
        raise
    except (*_KINDS, CompressorError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise FileError(
            f"the checkpoint's {what} not fit its network ({told}): it is damaged, or of another architecture"
        ) from error
