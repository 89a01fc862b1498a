"""Jobs, and the one reader that makes them of flags, files, a run's record and keywords in Python.

What a verb is asked to do is a `Job`: a frozen dataclass of settings and of whole classes of settings. `read` makes one
out of values by name, wherever they come from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from compressor.errors import UsageError, did_you_mean
from compressor.settings.setting import About, Known, checked

J = TypeVar("J", bound="Job")
R = TypeVar("R", bound=Any)
_SILENT = About("")


class Job:
    """What a verb is asked to do; a subclass is a frozen dataclass."""

    # Settings that it has no use for, of its classes or of the verb's other jobs -> what to do instead.
    LACKS: ClassVar[Mapping[str, str]] = {}
    # What `--help` shows where its settings are many; the others only by `--help-all`. Empty: as each setting says.
    SHOWS: ClassVar[frozenset[str]] = frozenset()

    # Further names of settings: what such a name is given goes to the setting that it stands for.
    ALIASES: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def takes(cls, given: Mapping[str, Any]) -> bool:
        """Whether these values ask for this job, of the several that a verb may have."""
        return True

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Classes of settings, by the job's field, as they are before `given`: what a preset or a mode sets."""
        return {}

    def completed(self) -> Self:
        """The job with what follows from its other settings.

        Raises:
            UsageError: values that make no sense together.
        """
        return self


def known_to(kind: type[Job]) -> dict[str, Known]:
    """The settings of a job by name, those of its classes included; the first class that has one tells its default."""
    known = {name: each for name, each in recorded_of(kind).items() if name not in kind.LACKS and each.about.text}
    rare = {name for name in known if kind.SHOWS and name not in kind.SHOWS}
    return {
        name: replace(each, about=replace(each.about, rare=True)) if name in rare else each
        for name, each in known.items()
    }


def recorded_of(kind: type[Job]) -> dict[str, Known]:
    """The same with those that it has no use for and fields that are no settings: a run's record holds all."""
    if kind not in _KNOWN:
        _KNOWN[kind] = _found(kind)
    return _KNOWN[kind]


_KNOWN: dict[Any, dict[str, Known]] = {}


def _found(kind: Any) -> dict[str, Known]:
    found: dict[str, Known] = {}
    hints = get_type_hints(kind)
    for entry in fields(kind):
        room = _whole(entry, hints[entry.name])
        own = _settings_in(kind, kind, "", (entry,)) if room is None else _settings_in(room, type(room), entry.name)
        for name, known in own.items():
            homes = found[name].homes if name in found else ()
            found[name] = replace(found.get(name, known), homes=(*homes, *known.homes))
    return found


def filled(room: R, given: Mapping[str, Any]) -> R:
    """The settings of one class with values by name, each checked.

    Raises:
        UsageError: a name is unknown, or a value has another type or is out of range.
    """
    known = _settings_in(room, type(room), "")
    for name, value in given.items():
        if name not in known:
            raise UsageError(stranger(name, value, known))
    return replace(room, **{name: checked(name, value, known[name]) for name, value in given.items()})


def read(
    kinds: Sequence[type[J]],
    given: Mapping[str, Any],
    *,
    verb: str,
    spell: Callable[[str], str] = str,
    chosen: Iterable[str] | None = None,
    whole: Mapping[str, Any] | None = None,
    inside: Mapping[str, Any] | None = None,
    recorded: bool = False,
) -> J:
    """The job that values by name ask for; what is not given is as the job's bases, or the settings' defaults, have it.

    Args:
        kinds: the jobs of the verb; the first that `takes` the values is made.
        verb: how the verb is called in messages: "compressor prune", "compressor.prune".
        spell: how a setting is called in messages.
        chosen: names of the settings that a person chose; None: all that are given.
        whole: whole classes of settings, by the job's field, in place of its bases.
        recorded: the values are a run's record.
        inside: fields that are no settings, such as `command`, for jobs that have them.

    Raises:
        UsageError: a name is unknown, a value has another type or is out of range, or values do not go together.
    """
    kind = next(kind for kind in kinds if kind.takes(given))
    known = recorded_of(kind) if recorded else known_to(kind)
    values: dict[str, Any] = {}
    for name, value in _resolved(kind, given, spell).items():
        if name not in known:
            raise UsageError(_stranger(name, kind, kinds, given, verb, spell))
        values[name] = checked(name, value, known[name], spell)
    bases = kind.bases(values) | dict(whole or {})
    for name, one in known.items():
        if one.default is MISSING and values.get(name) is None:
            others = "".join(f", or {spell(alias)}" for alias, stands in kind.ALIASES.items() if stands == name)
            what = f"{one.about.text[0].lower()}{one.about.text[1:].rstrip('.')}"
            raise UsageError(f"{spell(name)} is missing: give {what}{others}")
    hints = get_type_hints(kind)
    parts = {name: value for name, value in (inside or {}).items() if name in hints}
    if "chosen" in hints:
        parts["chosen"] = tuple(values if chosen is None else chosen)
    for entry in fields(kind):  # type: ignore[arg-type]
        room = _whole(entry, hints[entry.name])
        if room is not None:
            own = {name: value for name, value in values.items() if entry.name in known[name].homes}
            parts[entry.name] = replace(bases.get(entry.name, room), **own)
        elif entry.name in values:
            parts[entry.name] = values[entry.name]
    job: Any = kind
    made: J = job(**parts)
    return made.completed()


def _resolved(kind: type[Job], given: Mapping[str, Any], spell: Callable[[str], str]) -> dict[str, Any]:
    """The values by the settings' own names."""
    found = {name: value for name, value in given.items() if name not in kind.ALIASES}
    for alias, name in kind.ALIASES.items():
        if given.get(alias) is not None:
            if found.get(name) is not None:
                raise UsageError(f"{spell(alias)} and {spell(name)} exclude each other: leave one of them out")
            found[name] = given[alias]
    return found


def stranger(name: str, value: Any, known: Iterable[str]) -> str:
    """What is said of a name that no setting has: "there is no setting 'epoch' (did you mean epochs?)"; a file may hold
    tables.
    """
    if isinstance(value, dict):
        return f"[{name}] is a table, and settings stand on one level, such as epochs = 10"
    return f"there is no setting {name!r}{did_you_mean(name.replace('-', '_'), known)}"


def settings_of(room: Any) -> dict[str, Any]:
    """The settings of one class by name, without fields that are none."""
    return {entry.name: getattr(room, entry.name) for entry in fields(room) if "about" in entry.metadata}


def _settings_in(defaults: Any, kind: type, home: str, entries: Iterable[Any] | None = None) -> dict[str, Known]:
    """The settings among a class's fields."""
    hints, found = get_type_hints(kind), {}
    for entry in fields(kind) if entries is None else entries:
        about = entry.metadata.get("about", None if home == "" else _SILENT)
        if about is not None:
            default = entry.default if defaults is kind else getattr(defaults, entry.name)
            panel = about.panel or getattr(kind, "PANEL", "Other")
            found[entry.name] = Known(hints[entry.name], default, about, panel, (home,))
    return found


def _whole(entry: Any, hint: Any) -> Any:
    """The class of settings that a job's field holds, with the job's defaults; None for a setting of its own."""
    if not (isinstance(hint, type) and is_dataclass(hint)):
        return None
    return hint() if entry.default is MISSING else entry.default


def _stranger(
    name: str,
    kind: type[Job],
    kinds: Sequence[type[Job]],
    given: Mapping[str, Any],
    verb: str,
    spell: Callable[[str], str],
) -> str:
    """What is said of a name that the job has no setting of."""
    method = given.get("method", known_to(kind)["method"].default) if "method" in known_to(kind) else verb
    if name in kind.LACKS:
        return f"{spell(name)} is not for {method}: {kind.LACKS[name]}"
    for each in kinds:
        if name in known_to(each):
            owner = f"{spell('method')} {known_to(each)['method'].default}"
            return f"{spell(name)} belongs to {owner}, not to {method}: give {owner}, or leave {spell(name)} out"
    return f"{stranger(name, given[name], known_to(kind))}; {verb} knows {', '.join(known_to(kind))}"
