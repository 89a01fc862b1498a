"""Read what a run wrote down when it began back into its job; the folder may come from anyone."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from compressor.errors import FileError
from compressor.pipeline.folder import SETTINGS
from compressor.pipeline.settings import (
    AdaptJob,
    DetachJob,
    LongJob,
    PruneJob,
    ReplaceJob,
    RouteJob,
    SweepJob,
    TrainJob,
)

_JOBS: dict[str, type[Any]] = {
    "prune": PruneJob,
    "train": TrainJob,
    "finetune": TrainJob,
    "replace": ReplaceJob,
    "detach": DetachJob,
    "route": RouteJob,
    "sweep": SweepJob,
}


def job_of(settings: Mapping[str, Any]) -> LongJob:
    """The job that `flat` wrote down.

    Raises:
        FileError: a setting is missing or of another kind, or the command is none that trains.
    """
    command = settings.get("command")
    kind = AdaptJob if settings.get("method") == "adapnet" else _JOBS.get(str(command))
    if kind is None:
        raise FileError(f"a run of `compressor {str(command)[:80]}` cannot be resumed: start it again")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for entry in fields(kind):
        hint = hints[entry.name]
        if entry.name == "command":
            values[entry.name] = str(settings.get("typed", f"compressor {command}"))
        elif is_dataclass(hint):
            values[entry.name] = _filled(hint, settings)
        else:
            values[entry.name] = _value(entry, hint, settings)
    job: LongJob = kind(**values)
    return job


def _filled(kind: Any, settings: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{entry.name: _value(entry, hints[entry.name], settings) for entry in fields(kind)})


def _value(entry: Any, hint: Any, settings: Mapping[str, Any]) -> Any:
    if entry.name in settings:
        value = _tuples(settings[entry.name])
        if not _fits(value, hint):
            raise FileError(f"{SETTINGS} is damaged: {entry.name} is {str(value)[:80]!r}; start the run again")
        return value
    if entry.default is not MISSING:
        return entry.default
    raise FileError(f"{SETTINGS} lacks {entry.name!r}: it was written by another version; start the run again")


def _tuples(value: Any) -> Any:
    """Settings hold tuples, which JSON writes as lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a settings dataclass says."""
    kind, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(each, parts[0]) for each in value)
        return len(value) == len(parts) and all(_fits(each, part) for each, part in zip(value, parts))
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
