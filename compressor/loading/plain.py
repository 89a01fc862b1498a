"""Plain values: what a checkpoint may hold besides tensors, so that it opens without running code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.errors import UsageError


def to_plain(value: Any, where: str) -> Any:
    """The same value made of dict, list, tuple, str, int, float, bool and None; numbers of numpy become Python's.

    Raises UsageError for anything else, naming `where` it stands.
    """
    if value is None:
        return None
    for kind in (bool, int, float, str):  # in this order: a bool is an int; subclasses (an enum's member) become plain
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {to_plain(key, where): to_plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        plain = [to_plain(each, where) for each in value]
        return tuple(plain) if isinstance(value, tuple) else plain
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise UsageError(f"{where} holds a {type(value).__name__}, which a checkpoint cannot keep: give plain values")
