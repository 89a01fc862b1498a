"""Read what a run wrote down when it began back into its job; the folder may come from anyone."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from compressor.errors import FileError
from compressor.settings import fits, tuples
from compressor.runs.folder import SETTINGS
from compressor.runs.settings import (
    AdaptJob,
    DetachJob,
    FinetuneJob,
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
    "finetune": FinetuneJob,
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
        value = tuples(settings[entry.name])
        if not fits(value, hint):
            raise FileError(f"{SETTINGS} is damaged: {entry.name} is {str(value)[:80]!r}; start the run again")
        return value
    if entry.default is not MISSING:
        return entry.default
    raise FileError(f"{SETTINGS} lacks {entry.name!r}: it was written by another version; start the run again")
