"""What a setting is: a field of a dataclass with what is said of it, which values it takes, how a text becomes one."""

import ast
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from compressor.errors import UsageError


@dataclass(frozen=True)
class About:
    """What is said of a setting, and the least and most it takes."""

    text: str
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    argument: bool = False  # on a command line it is no flag
    rare: bool = False  # shown by --help-all only
    many: bool = False  # as a flag it is given once for each of its values
    panel: str | None = None  # the heading that its flag stands under; None: that of its class
    read: Callable[[str], Any] | None = None  # how a text is read; None: as its type says


def setting(
    default: Any,
    text: str,
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
    **more: Any,
) -> Any:
    """A field of a dataclass of settings; `MISSING` as default means that it has to be given."""
    return field(default=default, metadata={"about": About(text, metavar, least, most, **more)})


def same(kind: type, name: str) -> Any:
    """A field like that of another class of settings: one setting, which several verbs or methods take."""
    (entry,) = (entry for entry in fields(kind) if entry.name == name)
    return field(default=entry.default, metadata=entry.metadata)


@dataclass(frozen=True)
class Known:
    """A setting that a job takes."""

    hint: Any
    default: Any
    about: About  # of a field that is no setting, and stands in a run's record only, without a word
    panel: str
    homes: tuple[str, ...]  # fields of the job whose classes have it; "": it is the job's own


def checked(name: str, given: Any, known: Known, spell: Callable[[str], str] = str) -> Any:
    """A value as its setting holds it: lists as tuples, paths as texts, a text read as its type says.

    Raises:
        UsageError: it has another type, or is out of range.
    """
    value = plain(given)
    if not fits(value, known.hint):
        value = _from_text(name, given, value, known, spell)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if known.about.least is not None and not value >= known.about.least:
            raise UsageError(f"{spell(name)} is {value:g}, and has to be {known.about.least:g} or more")
        if known.about.most is not None and not value <= known.about.most:
            raise UsageError(f"{spell(name)} is {value:g}, and has to be {known.about.most:g} or less")
    return value


def plain(value: Any) -> Any:
    """As settings hold it: paths as texts; lists and dicts, as JSON and TOML write them, as tuples."""
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


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


def words(hint: Any, many: bool = False) -> str:
    """The type as a person says it: "a whole number", "one of sgd, adam", "a list of numbers"."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return parts[0] if len(parts) == 1 else f"one of {', '.join(map(str, parts))}"
    if kind in (Union, UnionType):
        return " or ".join(words(part) for part in parts if part is not NoneType)
    if kind is tuple:
        return (
            f"a list of {words(parts[0], many=True)}" if parts[-1] is Ellipsis else f"({', '.join(map(words, parts))})"
        )
    one = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))
    return f"{one.removeprefix('a ')}s" if many and one.startswith("a ") else one


def is_text(known: Known) -> bool:
    """Whether a flag takes its value as a text that `checked` reads."""
    return known.about.many or known.about.read is not None or _reader(known.hint, known.about.many) is not None


def _from_text(name: str, given: Any, value: Any, known: Known, spell: Callable[[str], str]) -> Any:
    """What a text, or several of a setting that takes many, says; a text where its type has none."""
    texts = value if known.about.many and isinstance(value, tuple) else (value,)
    reader = known.about.read or _reader(known.hint, known.about.many)
    if reader is None or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{spell(name)} is {given!r}, and has to be {words(known.hint)}")
    found = []
    for text in texts:
        try:
            found.append(reader(text))
        except ValueError as error:
            such = re.search(r"such as .*?(?=[.,;](?: |$))", known.about.text)
            odd = known.about.read is not None or "=" in (known.about.metavar or "")
            form = f"of the form {known.about.metavar}" if odd else words(known.hint)
            said = f", {such[0]}" if such else ""
            raise UsageError(f"{spell(name)} {text!r} is not {form}{said}") from error
    return tuple(found) if known.about.many else found[0]


def _reader(hint: Any, many: bool) -> Callable[[str], Any] | None:
    """How a text becomes a value of a type that is more than one word; None for plain numbers and words."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        readers = [_reader(part, many) for part in parts]
        literal = any(get_origin(part) is Literal for part in parts)
        return int if literal and int in parts else next(filter(None, readers), None)
    if kind is not tuple:
        return None
    if get_origin(parts[0]) is tuple:
        value = get_args(parts[0])[1]
        return lambda text: _pair(text, value)
    one: Callable[[str], Any] = _word if parts[0] is str else parts[0]
    return one if many else lambda text: tuple(one(part.strip()) for part in text.split(","))


def _word(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _pair(text: str, kind: Any) -> tuple[str, Any]:
    """`layer1.*=0.2` -> ("layer1.*", 0.2); for values of any kind Python's literals, anything else a text."""
    key, equals, value = (part.strip() for part in (text.rpartition("=") if kind is float else text.partition("=")))
    if not equals or not key or (kind is Any and not key.isidentifier()):
        raise ValueError(text)
    if kind is not Any:
        return key, kind(value)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
