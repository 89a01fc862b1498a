"""Plain values: what a checkpoint may hold besides tensors, so that it opens without running code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compressor.errors import UsageError

_MOST_VALUES = 200_000
_DEEPEST = 20
_LONGEST = 100_000  # characters of a text
_MOST_INPUTS = 1 << 26  # values of one image: 3x4096x4096 is within
_LARGEST = 2**63  # a number in JSON, in a tensor, in an attribute


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


def check_plain(value: Any, where: str) -> None:
    """Raise ValueError unless a value that was read is plain and of a sane size, naming `where` it stands.

    A list that holds one list twice, which holds one twice, has few bytes and endless values; they are counted as
    whoever prints or copies the value would meet them.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        each, depth = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(f"{where} has more than anyone could read")
        if type(each) is dict:
            if not all(type(key) in (str, int) for key in each):
                raise ValueError(f"{where} has keys that are no text")
            waiting += [(inner, depth + 1) for inner in (*each, *each.values())]
        elif type(each) in (list, tuple):
            waiting += [(inner, depth + 1) for inner in each]
        elif type(each) is str and len(each) > _LONGEST:
            raise ValueError(f"{where} has a text of {len(each):,} characters")
        elif type(each) is int and abs(each) >= _LARGEST:
            raise ValueError(f"{where} has a number of {each.bit_length()} bits")
        elif type(each) not in (str, int, float, bool, type(None)):
            raise ValueError(f"{where} holds a {type(each).__name__}")


def shape_of(value: Any) -> tuple[int, ...] | None:
    """An input shape as it was read; raises ValueError for one that no image has."""
    if value is None:
        return None
    sizes = tuple(value)
    if not 1 <= len(sizes) <= 8 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("its input shape is none")
    if math.prod(sizes) > _MOST_INPUTS:
        raise ValueError(f"its input has {math.prod(sizes):,} values")
    return sizes
