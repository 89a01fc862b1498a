"""Run several methods at several targets with one budget, and compare the results: `compressor sweep`."""

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, DataError, FileError, UsageError
from compressor.files.paths import check_writable, write_json
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.settings import BLOCKS, TRAINED, PruneSettings, check
from compressor.report import units
from compressor.report.report import Report
from compressor.report.run_comparison import DATA, PAGE, RunComparison
from compressor.report.runs import compare_runs
from compressor.runs.compare import timed_in_turn
from compressor.runs.estimate import epochs_within, estimate
from compressor.runs.folder import ONNX, REPORT, SETTINGS, file_sha256, named_folder, read_settings
from compressor.runs.job import FinetuneJob, RunJob, flat
from compressor.runs.jobs import AdaptJob, ShrinkJob, SweepJob, job_of_method
from compressor.runs.lock import FolderLock
from compressor.runs.promise import Judge
from compressor.runs.restart import restart
from compressor.runs.run import planned, run
from compressor.runs.settings import GoalSettings
from compressor.runs.stages import Callback, Stage, silent
from compressor.runs.subject import Subject, open_subject
from compressor.training.events import NoteEvent
from compressor.training.interrupt import Interrupted

CONTROL = "control"
# A sweep that goes on may have other methods and targets than it began with, and these have no part in its results.
_MAY_CHANGE = {"typed", "out", "overwrite", "methods", "targets", "target_ms", "control", "cwd", "chosen", "device"}


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    name: str  # also its folder's
    job: RunJob


def sweep(job: SweepJob, tell: Callback = silent) -> RunComparison:
    """Do the runs of the grid that are not done yet, finish those that were broken off, and compare all of them.

    A run that fails, because a target is out of reach for instance, is told and does not end the sweep.

    Raises:
        UsageError: the grid makes no sense, or the folder holds something else.
        FileError, DataError: files cannot be read or written.
        CompressorError: every run failed.
        Interrupted: a signal came.
    """
    cells = plan(job)
    folder, settings = checked(job)
    like = open_subject(job.model, job.data, job.loading, job.training.device)
    job, decided = fitted(job, cells, folder, like, tell)
    cells = plan(job)
    lock = begin(folder, settings)
    failed: dict[str, str] = {}
    for number, cell in enumerate(cells, 1):
        tell(NoteEvent(f"run {number} of {len(cells)}: {cell.name}"))
        mine = partial(carry_out, cell, folder / cell.name, job, tell, like, decided.get(cell.name))
        why = attempted(cell.name, mine, folder, tell)
        failed |= {} if why is None else {cell.name: why}
    names = [cell.name for cell in cells if cell.name not in failed]
    done = {str(folder / name): Report.load(folder / name) for name in names}
    if not done:
        raise CompressorError(f"every run failed: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    timed = None
    if job.output.latency and any((Path(folder) / ONNX).exists() for folder in done):
        tell(Stage("timing the results in turn"))
        timed = timed_in_turn(list(done), like.example)
    compared = compare_runs(done, failed, timed)
    if job.promise.max_drop is not None:
        tell(Stage("looking for the cheapest that keeps the promise"))
        rivals = {name: report.after.macs or 0 for name, report in done.items() if Path(name).name != CONTROL}
        promised, certificate = Judge(job, like).cheapest(rivals)
        compared = replace(compared, promised=promised, certificate=certificate)
    compared.save(folder)
    lock.release()
    return compared


def plan(job: SweepJob) -> list[Cell]:
    """The runs of the grid, in their order.

    Raises:
        UsageError: a method or target makes no sense.
    """
    named_folder(job.output.out)
    grid = job.grid
    for each, name in ((grid.methods, "methods"), (grid.targets, "targets"), (grid.target_ms, "target_ms")):
        if len(set(each)) < len(each) or not (each or name == "target_ms"):
            raise UsageError(f"a sweep needs everything in `{name}` once: give it as a list, without repetition")
    for target in grid.targets:
        if not 0 < target < 1:
            raise UsageError(
                f"the target {target:g} is no share of the MACs: give numbers between 0 and 1, such as 0.5"
            )
    for method in grid.methods:
        if method not in TRAINED:
            check(PruneSettings(method=method), has_data=True)
    return list(_runs(job))


def fitted(
    job: SweepJob, cells: Sequence[Cell], folder: Path, like: Subject, tell: Callback
) -> tuple[SweepJob, dict[str, Mapping[str, Any]]]:
    """The job with the epochs that all of its runs have time for, where it has a time, those of runs that are there
    already otherwise; and what the plans of runs that were tried decided.
    """
    seconds = job.time.for_
    if seconds is None:
        return job, {}
    decided: dict[str, Mapping[str, Any]] = {}
    begun = [] if job.output.overwrite else [cell.name for cell in cells if (folder / cell.name / SETTINGS).exists()]
    if begun:
        epochs, why = int(read_settings(folder / begun[0])["epochs"]), "as those that are there"
    else:
        tell(Stage("trying a few steps of every method"))
        epochs, why = _epochs_within(seconds, cells, like, decided), f"for which {units.duration(seconds)} have time"
    tell(NoteEvent(f"every run trains for {units.counted(epochs, 'epoch')}, {why}"))
    return replace(job, training=replace(job.training, epochs=epochs)), decided


def _epochs_within(seconds: float, cells: Sequence[Cell], like: Subject, decided: dict[str, Mapping[str, Any]]) -> int:
    """By one run of every method, whose other targets are taken to need as long; what was `decided` is added there."""
    start, paces = time.perf_counter(), []
    for _, group in groupby(cells, key=lambda cell: flat(cell.job).get("method")):
        for cell in (runs := list(group)):
            try:
                trial = planned(cell.job, like)
            except (FileError, DataError):
                raise
            except CompressorError:
                continue  # its run says why
            decided[cell.name] = trial.structure()
            pace = estimate(trial)
            paces += [pace] * len(runs)
            break
    return epochs_within(seconds, paces, time.perf_counter() - start)


def predicted(job: SweepJob, tell: Callback = silent) -> list[Cell]:
    """The runs of the grid, for a dry run; nothing is written."""
    cells = plan(job)
    if job.time.for_ is None:
        return cells
    like = open_subject(job.model, job.data, job.loading, job.training.device)
    return plan(fitted(job, cells, checked(job)[0], like, tell)[0])


def _runs(job: SweepJob) -> Iterator[Cell]:
    if job.grid.control:
        yield Cell(
            CONTROL, FinetuneJob(**common(job, CONTROL), training=job.training, command=_command(job, CONTROL, {}))
        )
    kind, unit, targets = "target_macs", "", job.grid.targets
    if job.grid.target_ms:
        kind, unit, targets = "target_ms", "ms", job.grid.target_ms
    for method in job.grid.methods:
        for target in targets:
            name = re.sub(r"[^\w.-]+", "-", f"{method}-{target:g}{unit}")
            if method in TRAINED:
                yield Cell(name, _adapnet(job, name, {kind: target}))
                continue
            given: dict[str, Any] = {"method": method, kind: target}
            given |= {} if job.grid.reconstruct or method in BLOCKS else {"reconstruct": False}
            choice = PruneSettings(**given, seed=job.training.seed)
            command = _command(job, name, given)
            yield Cell(
                name, job_of_method(method)(**common(job, name), choice=choice, training=job.training, command=command)
            )


def _adapnet(job: SweepJob, name: str, target: Mapping[str, Any]) -> AdaptJob:
    """AdapNet with the same number of epochs, of which it may change the structure in three quarters."""
    training = job.training
    fine = max(1, training.epochs // 4)
    own = {field.name for field in fields(AdapNetSettings)} & set(job.chosen)
    changed: dict[str, Any] = {key: getattr(training, key) for key in own if hasattr(training, key)}
    changed |= {"batch_size": training.batch_size, "max_epochs": max(1, training.epochs - fine)}
    changed |= {"finetune_epochs": fine, "startup_epochs": 0, "lsep": job.grid.lsep}
    changed = {key: value for key, value in changed.items() if value is not None or key == "lsep"}
    typed = {"method": "adapnet", "preset": "quick", **target, "fill": True}
    return AdaptJob(
        **common(job, name),
        goals=GoalSettings(**target, fill=True),
        training=training,
        preset="quick",
        adapnet=replace(PRESETS["quick"], **changed),
        command=_command(job, name, {**typed, **{key: value for key, value in changed.items() if value is not None}}),
    )


def common(job: SweepJob | ShrinkJob, name: str) -> dict[str, Any]:
    """Settings that every run of several shares; those with an ONNX file are timed in turn when all are done."""
    output = job.output
    assert output.out is not None
    output = replace(output, out=str(Path(output.out) / name), latency=output.latency and not output.onnx)
    shared = {name: getattr(job, name) for name in ("model", "data", "loading", "distilling", "promise")}
    return {**shared, "output": output}


def _command(job: SweepJob, name: str, more: dict[str, Any]) -> str:
    """The command that does one run of the grid alone."""
    assert job.model.model is not None and job.output.out is not None
    settings = flat(job)
    own = {field.name for field in fields(job.grid)} | {"model", "data", "out", "overwrite", "for_"}
    given = {key: settings[key] for key in job.chosen if key in settings and key not in own}
    if "method" in more and more["method"] in TRAINED:
        given.pop("epochs", None)
    else:
        given["epochs"] = job.training.epochs
    values = {**given, **more, "data": job.data, "out": str(Path(job.output.out) / name)}
    verb = "finetune" if name == CONTROL else "prune"
    return shlex.join(["compressor", verb, job.model.model, *_flags(values)])


def _flags(values: dict[str, Any]) -> Iterator[str]:
    """Settings as they would be typed."""
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        elif name == "arch_arg":
            yield from (part for key, entry in value for part in (flag, f"{key}={entry}"))
        elif isinstance(value, list | tuple):
            yield from (flag, ("x" if name == "input" else ",").join(map(str, value)))
        elif value is not None:
            yield from (flag, str(value))


def checked(job: RunJob) -> tuple[Path, dict[str, Any]]:
    """The folder, which is free or holds what may be gone on with, and the settings that are written there."""
    folder = named_folder(job.output.out)
    check_writable(folder)
    command = job.command.split()[1]
    settings = {**flat(job), "cwd": str(Path.cwd()), "model_sha256": file_sha256(job.model.model)}
    if not job.output.overwrite and folder.exists() and any(folder.iterdir()):
        _check_same(folder, settings, command)
    return folder, settings


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


def _check_same(folder: Path, settings: dict[str, Any], command: str) -> None:
    """Only the same sweep, with more or fewer methods and targets, may go on in a folder."""
    if not (folder / SETTINGS).exists():
        raise UsageError(f"{folder} is not empty and holds no {command}: give another --out")
    before = read_settings(folder)
    if before.get("command") != command:
        raise UsageError(f"{folder} holds a run of compressor {before.get('command')}: give another --out")
    now = json.loads(json.dumps(settings))  # as it would come back from the file
    keys = (before.keys() | now.keys()) - _MAY_CHANGE
    changed = sorted(key for key in keys if before.get(key) != now.get(key))
    if changed:
        was = ", ".join(f"{key} {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
        raise UsageError(f"{folder} holds a {command} with other settings ({was}): give another --out, or --overwrite")


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
