"""Kill a run of the command line again and again, resume it each time, and say whether it ends where it should.

`python -m tests.faults.killing FOLDER RUN MOMENT ...` prints one JSON object. A moment is a number, the share of the
undisturbed run's time after which SIGKILL comes, or `rename:N`, `fsync:N` or `edit:N`: before the n-th rename or flush
of a file, or in the middle of the n-th change of structure. Children are forked, so that libraries are imported once.
"""

import gc
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.commands import once
from tests.faults.runs import RUNS

_SLOW_TO_IMPORT = (
    "compressor.runs.resume", "compressor.cli.app", "pydantic", "sklearn.datasets", "thop",
)  # fmt: skip
_TIMES = ("seconds", "images_per_second", "latency_ms")


def main(folder: Path, name: str, moments: list[str]) -> dict[str, Any]:
    """The undisturbed run, then the one that is killed at each moment in turn."""
    for slow in _SLOW_TO_IMPORT:
        importlib.import_module(slow)
    importlib.import_module("compressor.report.html").draw = lambda plot: ""  # type: ignore[attr-defined]
    once()
    gc.collect()
    gc.freeze()
    os.chdir(folder)
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    began = time.monotonic()
    _finish(folder / "whole", [*RUNS[name], "--out", "run"])
    whole = time.monotonic() - began
    kills, place = 0, folder / "killed"
    for moment in moments:
        command = [*RUNS[name], "--out", "run"] if not (place / "run" / "settings.json").exists() else ["resume", "run"]
        kills += _killed(place, command, moment, whole)
        if (place / "run" / "report.json").exists():
            break
    if not (place / "run" / "report.json").exists():
        begun = (place / "run" / "settings.json").exists()
        _finish(place, ["resume", "run"] if begun else [*RUNS[name], "--out", "run"])
    return {
        "kills": kills,
        "weights": _same_weights(folder / "whole" / "run", place / "run"),
        "report": _report(folder / "whole" / "run") == _report(place / "run"),
        "left": sorted(each.name for each in (place / "run").iterdir() if each.name.startswith(".")),
    }


def _finish(place: Path, command: list[str]) -> None:
    child = os.fork()
    if child == 0:
        _be(place, command)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        sys.exit(f"{command} left with {code}: {(place / 'said').read_text()[-2000:]}")


def _killed(place: Path, command: list[str], moment: str, whole: float) -> bool:
    """Run in a child that dies at the moment; whether it did."""
    child = os.fork()
    if child == 0:
        what, _, number = moment.partition(":")
        if number:
            _DIE[what](int(number))
        _be(place, command)
    if ":" not in moment:
        time.sleep(float(moment) * whole)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _be(place: Path, command: list[str]) -> NoReturn:
    output = os.open(place / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(place)
    code = 70
    try:
        from compressor.cli import main as run

        run(command)
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _after(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which kills its process instead of doing its work for the n-th time."""
    calls = [0]

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            signal.raise_signal(signal.SIGKILL)
        return function(*arguments, **keywords)

    return call


def _die_at_rename(number: int) -> None:
    Path.replace = _after(number, Path.replace)  # type: ignore[method-assign]


def _die_at_flush(number: int) -> None:
    os.fsync = _after(number, os.fsync)


def _die_in_an_edit(number: int) -> None:
    """Between the tensors of one edit: some have their new shape, some the old."""
    operate = importlib.import_module("compressor.surgery.operate")
    operate.assign_ = _after(number, operate.assign_)


_DIE: dict[str, Callable[[int], None]] = {"rename": _die_at_rename, "fsync": _die_at_flush, "edit": _die_in_an_edit}


def _same_weights(one: Path, other: Path) -> bool:
    import torch

    import compressor

    first, second = (compressor.load(each / "model.safetensors").state_dict() for each in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _report(run: Path) -> Any:
    return without_times(json.loads((run / "report.json").read_text()))


def without_times(value: Any) -> Any:
    """A report without what depends on the speed of the machine."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in _TIMES}
    if isinstance(value, list):
        return [without_times(each) for each in value]
    return re.sub(r"\d+% of training time", "some of training time", value) if isinstance(value, str) else value


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3:])))
