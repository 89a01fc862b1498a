"""Whether a value from a file is of the type that a dataclass says; nothing heavy is imported."""

from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from compressor.errors import UsageError, did_you_mean


def tuples(value: Any) -> Any:
    """Settings hold tuples, which JSON and TOML write as lists."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of that type; a whole number is a number with a point too, yes and no are no numbers."""
    kind, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(fits(each, parts[0]) for each in value)
        return len(value) == len(parts) and all(fits(each, part) for each, part in zip(value, parts))
    if kind is dict:
        if type(value) is not dict:
            return False
        return all(fits(key, parts[0]) and fits(each, parts[1]) for key, each in value.items())
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def check_fits(name: str, value: Any, hint: Any) -> None:
    """Raise UsageError for a value of a setting that is of another type."""
    if not fits(value, hint):
        raise UsageError(f"{name} is {value!r}, and has to be {words(hint)}")


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said of a name that no setting has: "there is no setting 'epoch' (did you mean epochs?)"."""
    return f"there is no setting {name!r}{did_you_mean(name.replace('-', '_'), known)}"


def words(hint: Any) -> str:
    """The type as a person says it: "a whole number", "one of sgd, adam"."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if kind in (Union, UnionType):
        return " or ".join(words(part) for part in parts if part is not NoneType)
    if kind is tuple:
        return f"a list of {words(parts[0])}" if parts[-1] is Ellipsis else f"[{', '.join(map(words, parts))}]"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))
