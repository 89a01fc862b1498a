"""Go on with a run that was broken off, to what it would have come to: `compressor resume`."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from compressor.errors import FileError, UsageError
from compressor.pipeline.adapnet import adapt
from compressor.pipeline.detach import detach
from compressor.pipeline.folder import REPORT, SETTINGS
from compressor.pipeline.prune import prune
from compressor.pipeline.replace import replace_early
from compressor.pipeline.route import route
from compressor.pipeline.settings import AdaptJob, DetachJob, PruneJob, ReplaceJob, RouteJob, TrainJob
from compressor.pipeline.stages import Tell, silent
from compressor.pipeline.train import train
from compressor.reporting.report import Report

LongJob = PruneJob | AdaptJob | TrainJob | ReplaceJob | DetachJob | RouteJob

_JOBS: dict[str, type[Any]] = {
    "prune": PruneJob,
    "train": TrainJob,
    "finetune": TrainJob,
    "replace": ReplaceJob,
    "detach": DetachJob,
    "route": RouteJob,
}


def resume(path: str, tell: Tell = silent) -> Report:
    """Finish the run in a folder, which may have been moved; returns the report that was written.

    Raises:
        FileError: there is no run in the folder, or its settings are damaged.
        UsageError: the run is finished.
        CompressorError: anything else the user can mend.
    """
    folder = Path(path).expanduser().resolve()
    settings = _settings(folder)
    if (folder / REPORT).exists():
        raise UsageError(f"the run in {path} is finished: there is nothing to resume")
    job = job_of(settings)
    job = replace(job, output=replace(job.output, out=str(folder)))
    # Paths were given from where the run began.
    cwd = Path(settings.get("cwd", "."))
    with contextlib.chdir(cwd) if cwd.is_dir() else contextlib.nullcontext():
        return _go_on(job, tell)


def job_of(settings: Mapping[str, Any]) -> LongJob:
    """The job that `flat` wrote down.

    Raises:
        FileError: a setting is missing, or the command is none that trains.
    """
    command = settings.get("command")
    kind = AdaptJob if settings.get("method") == "adapnet" else _JOBS.get(str(command))
    if kind is None:
        raise FileError(f"a run of `compressor {command}` cannot be resumed: start it again")
    hints = get_type_hints(kind)
    values = {}
    for entry in fields(kind):
        if entry.name == "command":
            values[entry.name] = settings.get("typed", f"compressor {command}")
        elif is_dataclass(hints[entry.name]):
            values[entry.name] = _filled(hints[entry.name], settings)
        else:
            values[entry.name] = _value(entry, settings)
    job: LongJob = kind(**values)
    return job


def _go_on(job: LongJob, tell: Tell) -> Report:
    match job:
        case PruneJob():
            return prune(job, tell, resume=True)
        case AdaptJob():
            return adapt(job, tell, resume=True)
        case TrainJob():
            return train(job, tell, resume=True)
        case ReplaceJob():
            return replace_early(job, tell, resume=True)
        case DetachJob():
            return detach(job, tell, resume=True).report
        case RouteJob():
            return route(job, tell, resume=True).report


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"there is no run in {folder} ({SETTINGS}: {error.strerror}): give a run's folder") from error
    except ValueError as error:
        raise FileError(f"{folder / SETTINGS} is damaged ({error}): start the run again") from error
    if not isinstance(settings, dict):
        raise FileError(f"{folder / SETTINGS} is damaged: start the run again")
    return settings


def _filled(kind: Any, settings: Mapping[str, Any]) -> Any:
    return kind(**{entry.name: _value(entry, settings) for entry in fields(kind)})


def _value(entry: Any, settings: Mapping[str, Any]) -> Any:
    if entry.name in settings:
        return _tuples(settings[entry.name])
    if entry.default is not MISSING:
        return entry.default
    raise FileError(f"{SETTINGS} lacks {entry.name!r}: it was written by another version; start the run again")


def _tuples(value: Any) -> Any:
    """Settings hold tuples, which JSON writes as lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
