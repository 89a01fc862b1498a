"""Several runs in one folder: begun or gone on with by one process, each carried out, resumed or done already.

A sweep has a grid of them, a search one after the other.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, DataError, FileError, UsageError
from compressor.files.paths import check_writable, write_json
from compressor.report.run_comparison import DATA, PAGE
from compressor.runs.folder import REPORT, SETTINGS, file_sha256, named_folder, read_settings
from compressor.runs.job import RunJob, flat
from compressor.runs.jobs import ShrinkJob, SweepJob
from compressor.runs.lock import FolderLock
from compressor.runs.restart import restart
from compressor.runs.run import run
from compressor.runs.stages import Callback
from compressor.runs.subject import Subject
from compressor.training.events import NoteEvent
from compressor.training.interrupt import Interrupted

# A sweep that goes on may have other methods and targets than it began with, and these have no part in its results.
_MAY_CHANGE = {"typed", "out", "overwrite", "methods", "targets", "target_ms", "control", "cwd", "chosen", "device"}


@dataclass(frozen=True)
class Cell:
    """One run of several."""

    name: str  # also its folder's
    job: RunJob


def common(job: SweepJob | ShrinkJob, name: str) -> dict[str, Any]:
    """Settings that every run of several shares; those with an ONNX file are timed in turn when all are done."""
    output = job.output
    assert output.out is not None
    output = replace(output, out=str(Path(output.out) / name), latency=output.latency and not output.onnx)
    shared = {name: getattr(job, name) for name in ("model", "data", "loading", "distilling", "promise")}
    return {**shared, "output": output}


def checked(job: RunJob) -> tuple[Path, dict[str, Any]]:
    """The folder, which is free or holds what may be gone on with, and the settings that are written there."""
    folder = named_folder(job.output.out)
    check_writable(folder)
    command = job.command.split()[1]
    settings = {**flat(job), "cwd": str(Path.cwd()), "model_sha256": file_sha256(job.model.model)}
    if not job.output.overwrite and folder.exists() and any(folder.iterdir()):
        _check_same(folder, settings, command)
    return folder, settings


def _check_same(folder: Path, settings: dict[str, Any], command: str) -> None:
    """Only the same sweep, with more or fewer methods and targets, may go on in a folder."""
    if not (folder / SETTINGS).exists():
        raise UsageError(f"{folder} is not empty and holds no {command}: give another `out`")
    before = read_settings(folder)
    if before.get("command") != command:
        raise UsageError(f"{folder} holds a run of compressor {before.get('command')}: give another `out`")
    now = json.loads(json.dumps(settings))  # as it would come back from the file
    keys = (before.keys() | now.keys()) - _MAY_CHANGE
    changed = sorted(key for key in keys if before.get(key) != now.get(key))
    if changed:
        was = ", ".join(f"{key} {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
        raise UsageError(f"{folder} holds a {command} with other settings ({was}): give another `out`, or `overwrite`")


def begin(folder: Path, settings: dict[str, Any]) -> FolderLock:
    """Make the folder that was checked, or go on in it; others stay out until the lock is released.

    Raises UsageError where another process writes to it, which is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    write_json(folder / SETTINGS, settings)
    for name in (PAGE, DATA):
        (folder / name).unlink(missing_ok=True)
    return lock


def carry_out(
    cell: Cell,
    folder: Path,
    job: RunJob,
    tell: Callback,
    like: Subject | None = None,
    decided: Mapping[str, Any] | None = None,
) -> None:
    """Do one run of several, or what is missing of it; see `run` for `like` and `decided`."""
    overwrite = job.output.overwrite
    if (folder / REPORT).exists() and not overwrite:
        tell(NoteEvent(f"{cell.name} is done already"))
    elif (folder / SETTINGS).exists() and not overwrite:
        restart(str(folder), tell, trust=job.model.trust, arch=job.model.arch)
    else:
        run(cell.job, tell, like=like, decided=decided)


def attempted(name: str, do: Callable[[], object], folder: Path, tell: Callback) -> str | None:
    """Why one run of several failed, None where it did not; what ends all of them is raised."""
    try:
        do()
    except Interrupted as stop:
        raise Interrupted(stop.signal, f"{stop}; with the others: compressor resume {folder}") from stop
    except (FileError, DataError):
        raise
    except CompressorError as error:
        tell(NoteEvent(f"{name} failed: {error}"))
        return str(error)
    return None
