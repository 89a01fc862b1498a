"""Plain values: what a file may hold besides tensors, as JSON writes it, so that it is read without running code."""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Size

from compressor.errors import UsageError

_MOST_INPUTS = 1 << 26  # values of one image: 3x4096x4096 is within
_LARGEST = 2**64  # a number in JSON, in a tensor, in an attribute

# Collections that JSON does not have, by the name that stands for each.
_COLLECTIONS: dict[type, str] = {tuple: "$tuple", Size: "$size", set: "$set", frozenset: "$frozenset"}

Special = Callable[[Any, str], Any]  # the form of a value that is not plain, and where it is; None where it has none


def encode(value: Any, where: str, special: Special | None = None) -> Any:
    """The value as JSON holds it: itself, or a dict of one entry whose name begins with $ and says what it is.

    Lists, tuples, sets and dicts are taken with what is in them; everything else is `special`'s. `decode` gives an
    equal value of the same types. Raises TypeError for a value that has no form, and says `where` it is.
    """
    kind = type(value)
    if value is None or kind in (bool, str) or (kind is int and abs(value) < _LARGEST):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list:
        return [encode(each, f"{where}.{place}", special) for place, each in enumerate(value)]
    if kind in _COLLECTIONS:
        return {_COLLECTIONS[kind]: encode(list(value), where, special)}
    if kind in (dict, OrderedDict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(each, f"{where}.{key}", special) for key, each in value.items()}
        pairs = [[encode(key, where), encode(each, f"{where}.{key}", special)] for key, each in value.items()]
        return {"$dict": pairs}
    form = None if special is None else special(value, where)
    if form is None:
        raise TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}, which is not a plain value")
    return form


def decode(form: Any, special: Mapping[str, Callable[[Any], Any]] | None = None) -> Any:
    """The value that `encode` made a form of; `special` reads the forms that are not of plain values, by their names.

    Raises one of ArithmeticError, LookupError, RecursionError, TypeError and ValueError for a damaged form.
    """
    if isinstance(form, list):
        return [decode(each, special) for each in form]
    if not isinstance(form, dict):
        return form
    name = next(iter(form), "")
    if not name.startswith("$"):
        return {key: decode(each, special) for key, each in form.items()}
    ((_, held),) = form.items()
    if special is not None and name in special:
        return special[name](held)
    return _READ[name](decode(held, special))


_READ: dict[str, Callable[[Any], Any]] = {
    "$float": lambda held: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[held],
    "$dict": dict,
    **{name: kind for kind, name in _COLLECTIONS.items()},
}


def to_json(form: Any) -> str:
    """The text of a form."""
    return json.dumps(form, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> Any:
    """The form in a text; raises ValueError or RecursionError for one that `to_json` does not write."""
    if re.search(r"\\u[dD][89a-fA-F]", text):
        raise ValueError("half of a character")
    return json.loads(text, parse_int=_whole, parse_constant=_whole)


def _whole(digits: str) -> int:
    if len(digits) > 21 or abs(int(digits)) >= _LARGEST:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


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


def check_shape(sizes: tuple[int, ...]) -> None:
    """Raises ValueError for an input shape that no image has."""
    if not 1 <= len(sizes) <= 8 or min(sizes) <= 0:
        raise ValueError("its input shape is not that of an image")
    if math.prod(sizes) > _MOST_INPUTS:
        raise ValueError(f"its input has {math.prod(sizes):,} values")
