"""Go on with a run that was broken off, to what it would have come to.

The folder may come from anyone, so what its settings allow is not enough: a model file's pickle and an architecture's
Python file run only if the person at the keyboard says so again, or named that very file on this machine before.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

from compressor.errors import FileError, UsageError
from compressor.loading.arch import parse_arch, was_named
from compressor.report.report import Report
from compressor.report.run_comparison import PAGE as COMPARISON
from compressor.runs.folder import REPORT, file_sha256, read_settings
from compressor.runs.job import RunJob
from compressor.runs.jobs import VERBS, PruneJob
from compressor.runs.own import may_run
from compressor.runs.run import run
from compressor.runs.settings import ModelSettings
from compressor.runs.stages import Callback
from compressor.settings import fits, plain, read, recorded_of, stranger
from compressor.training import distributed


def from_checkpoint(job: RunJob, tell: Callback) -> Report:
    """Go on with a run."""
    return run(job, tell, resume=True)


def restart(
    path: str,
    tell: Callback,
    go_on: Callable[[RunJob, Callback], Any] = from_checkpoint,
    *,
    trust: bool = False,
    arch: str | None = None,
) -> Any:
    """Finish the run in a folder, which may have been moved; returns what the run itself would have returned.

    `go_on` carries out what is left of the job. `trust` and `arch` are what `resume` takes.

    Raises:
        FileError: there is no run in the folder, or its settings are damaged.
        UsageError: the run is finished, or would run code that was not named on this machine, or the model has changed.
        CompressorError: anything else the user can mend.
    """
    folder = Path(path).expanduser().resolve()
    settings, finished = distributed.from_first(lambda: (read_settings(folder), _is_finished(folder)))
    if finished:
        raise UsageError(f"the run in {path} is finished: there is nothing to resume")
    job = job_of(settings)
    if isinstance(job, PruneJob) and not may_run(job.choice.method):
        raise UsageError(
            f"the run in {path} scores channels by code in a file, {job.choice.method[:200]}, that was never named on "
            "this machine or has changed since: start it again with `method`"
        )
    job = replace(job, output=replace(job.output, out=str(folder)))
    # Paths were given from where the run began.
    cwd = Path(str(settings.get("cwd", ".")))
    with contextlib.chdir(cwd) if cwd.is_dir() else contextlib.nullcontext():
        if job.data is not None and not may_run(job.data):
            raise UsageError(
                f"the run in {path} learns by code in a file, {job.data[:200]}, that was never named on this machine "
                "or has changed since: start it again with `task`"
            )
        model = _allowed(job.model, path, trust=trust, arch=arch)
        _check_unchanged(model, settings)
        return go_on(replace(job, model=model), tell)


def job_of(settings: Mapping[str, Any]) -> RunJob:
    """The job that `flat` wrote down when a run began; the run's folder may come from anyone.

    Raises:
        FileError: a setting is missing or of another kind, or the command does not train.
    """
    command = str(settings.get("command"))
    kinds = VERBS.get(command, ())
    if not kinds or not issubclass(kinds[0], RunJob):
        raise FileError(f"a run of `compressor {command[:80]}` cannot be resumed: start it again")
    kind = next(kind for kind in kinds if kind.takes(settings))
    known = recorded_of(kind)
    given = {name: settings[name] for name in known if name in settings}
    for name, one in known.items():
        if name not in given and one.default is MISSING:
            raise FileError(f"settings.json lacks {name!r}: it was written by another version; start the run again")
    chosen, typed = settings.get("chosen", ()), str(settings.get("typed", f"compressor {command}"))
    try:
        if not fits(plain(chosen), tuple[str, ...]):
            raise UsageError(f"chosen is {chosen!r}")
        for name in chosen:
            if name not in known and name not in kind.ALIASES:
                raise UsageError(stranger(name, settings.get(name), known))
        inside = {"command": typed}
        made: Any = read([kind], given, verb="compressor", chosen=chosen, inside=inside, recorded=True)
    except UsageError as error:
        raise FileError(f"settings.json is damaged: {str(error)[:400]}; start the run again") from error
    job: RunJob = made
    return job


def _is_finished(folder: Path) -> bool:
    return (folder / REPORT).exists() or (folder / COMPARISON).exists()


def _allowed(model: ModelSettings, path: str, *, trust: bool, arch: str | None) -> ModelSettings:
    """The model's settings, with code only where it was named on this machine."""
    if model.trust and not trust:
        raise UsageError(
            f"the run in {path} began with `trust`, which lets its model file run code: give `trust` again if you know "
            "who made it"
        )
    if arch is not None:
        return replace(model, arch=arch)
    if model.arch is not None and not was_named(parse_arch(model.arch)):
        raise UsageError(
            f"the architecture of the run in {path} is code in a file, {model.arch[:200]}, that was never named on "
            "this machine or has changed since: give the right one with `arch`"
        )
    return model


def _check_unchanged(model: ModelSettings, settings: Mapping[str, Any]) -> None:
    """Another model under the same name would give the run another end."""
    if model.model is None or not Path(model.model).is_file():
        return  # opening it says what is wrong
    if settings.get("model_sha256") not in (None, file_sha256(model.model)):
        raise UsageError(f"{model.model} has changed since the run began: put the old file back, or start a new run")
