"""What damaged data make the code fail with that follows them, in one line for the user."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from compressor.errors import CompressorError, FileError, first_line

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
