"""Run several methods at several targets with one budget, and compare the results: `compressor sweep`."""

import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, DataError, FileError, UsageError
from compressor.pruning.adapnet.settings import PRESETS, in_epochs
from compressor.pruning.settings import BLOCKS, TRAINED, PruneSettings, check
from compressor.report import units
from compressor.report.report import Report
from compressor.report.run_comparison import RunComparison
from compressor.report.runs import compare_runs
from compressor.runs.compare import timed_in_turn
from compressor.runs.estimate import epochs_within, estimate
from compressor.runs.folder import ONNX, SETTINGS, named_folder, read_settings
from compressor.runs.job import FinetuneJob, flat
from compressor.runs.jobs import AdaptJob, SweepJob, job_of_method
from compressor.runs.promise import Judge
from compressor.runs.run import planned
from compressor.runs.settings import GoalSettings
from compressor.runs.several import Cell, attempted, begin, carry_out, checked, common
from compressor.runs.stages import Callback, Stage, silent
from compressor.runs.subject import Subject, open_subject
from compressor.training.events import NoteEvent

CONTROL = "control"


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
    training, preset = job.training, PRESETS["quick"]
    own = [each.name for each in fields(preset) if each.name in job.chosen and hasattr(training, each.name)]
    changed = {name: getattr(training, name) for name in own if getattr(training, name) is not None}
    changed |= {"batch_size": training.batch_size, "lsep": job.grid.lsep, "reconstruct": job.grid.reconstruct}
    adapnet = in_epochs(replace(preset, **changed), training.epochs)
    told = {name: getattr(adapnet, name) for name in (*changed, "max_epochs", "finetune_epochs", "startup_epochs")}
    typed = {"method": "adapnet", "preset": "quick", **target, "fill": True}
    return AdaptJob(
        **common(job, name),
        goals=GoalSettings(**target, fill=True),
        training=training,
        preset="quick",
        adapnet=adapnet,
        command=_command(job, name, {**typed, **told}),
    )


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
