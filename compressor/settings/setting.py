"""What a setting is: a field of a dataclass, with its default, what is said of it, and the least and most it takes."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


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
