"""Dataclasses as plain data, the types that JSON has, and back again by the types of their fields."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Types that JSON has: tuples become lists, dataclasses dicts, numbers of NumPy and torch Python's."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.item()) if hasattr(value, "item") else str(value)


def from_plain(kind: type[T], data: Mapping[str, Any]) -> T:
    """The dataclass that plain data were made of; what it does not know is left out.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or of another type.
    """
    hints = get_type_hints(kind)
    names = [entry.name for entry in fields(kind) if entry.name in data]  # type: ignore[arg-type]
    return kind(**{name: _value(hints[name], data[name], name) for name in names})


def _value(hint: Any, value: Any, name: str) -> Any:
    origin, kinds = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in kinds:
            return None
        last: Exception | None = None
        for kind in kinds:
            try:
                return _value(kind, value, name)
            except (TypeError, ValueError, KeyError) as error:
                last = error
        raise TypeError(f"{name} is {type(value).__name__}") from last
    if hint is Any or (origin is Literal and value in kinds):
        return value
    wanted = {tuple: list | tuple, dict: Mapping, float: float | int | None}.get(origin or hint, origin or hint)
    if is_dataclass(hint):
        wanted = Mapping
    if origin is Literal or not isinstance(value, wanted):
        raise TypeError(f"{name} is {str(value)[:40]!r}")
    if is_dataclass(hint):
        return from_plain(hint, value)  # type: ignore[arg-type]
    if origin is tuple:
        each = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return tuple(_value(kind, entry, name) for kind, entry in zip(each, value, strict=True))
    return {str(key): _value(kinds[1], entry, name) for key, entry in value.items()} if origin is dict else value
