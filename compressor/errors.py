"""The errors a user can cause, by what the user can do about them; anything else is a bug and keeps its traceback."""

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about an unknown name: " (did you mean layer1?)", or nothing where none is similar."""
    import difflib  # for errors only

    near = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""


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
