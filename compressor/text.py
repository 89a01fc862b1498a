"""Texts out of files and of other people's code, on their way to where they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable


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
    """The first few of a file's own names in one line, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def first_line(error: BaseException, most: int = 400) -> str:
    """What an exception says in its first line, or its kind where it says nothing; without ONNX Runtime's codes."""
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)[:10_000])
    lines = (line.strip() for line in said.splitlines())
    return shown(next(filter(None, lines), type(error).__name__), most)
