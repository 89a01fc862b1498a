"""Put the reports of several runs side by side: `compressor compare`."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.errors import FileError, UsageError
from compressor.exporting.onnx import feeds_of
from compressor.exporting.runtime import OnnxModel, open_session
from compressor.exporting.samples import images, portable, random_like
from compressor.files.paths import check_writable
from compressor.profiling.latency import time_images
from compressor.report.environment import processor
from compressor.report.manifest import Array
from compressor.report.progress import counted
from compressor.report.report import Report
from compressor.report.run_comparison import DATA, PAGE, RunComparison
from compressor.report.runs import Timed, compare_runs
from compressor.runs.folder import ONNX, REPORT, SETTINGS, named_folder

_IMAGES = 20  # random ones that networks are timed on


def compare(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    latency: bool = False,
) -> RunComparison:
    """Read the reports in the runs' folders and compare their results.

    Args:
        runs: folders of finished runs, or their report.json files.
        out: a folder for `comparison.html` and `comparison.json`; None: nothing is written.
        overwrite: the folder may hold an earlier comparison.
        latency: time the runs' ONNX files again, in turn, in place of each run's own measurement.

    Raises:
        UsageError: a run is named twice, or there is a comparison in `out` already.
        FileError: a folder holds no finished run.

    Example:
        compared = compressor.compare(["runs/l1", "runs/adapnet"], out="runs/compared")
        compared.points[0].top1, compared.fronts["macs"]
    """
    names = [os.fspath(run).rstrip("/") or os.fspath(run) for run in runs]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice: give each run once")
    if out is not None:
        check_free(Path(out), overwrite=overwrite)
    reports = {name: _finished(name) for name in names}
    compared = compare_runs(reports, timed=timed_in_turn(names) if latency else None)
    if out is not None:
        compared.save(out)
    return compared


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise UsageError where a comparison would be written over, FileError where none can be written."""
    named_folder(folder)
    for name in () if overwrite else (PAGE, DATA):
        if (folder / name).exists():
            raise UsageError(f"{folder / name} exists: give another `out`, or `overwrite` to replace it")
    check_writable(folder)


def timed_in_turn(runs: Sequence[str], example: Any = None) -> Timed:
    """Time the runs' ONNX files, see `time_files`.

    Raises:
        FileError: none of the runs has an ONNX file.
    """
    files = {run: Path(run).expanduser() / ONNX for run in runs}
    files = {run: path for run, path in files.items() if path.exists()}
    if not files:
        raise FileError(f"none of the runs has a {ONNX} that could be timed: run them without `onnx=False`")
    return time_files(files, example)


def time_files(files: Mapping[str, Path], example: Any = None, real: Array | None = None) -> Timed:
    """Time ONNX files on single images, each file once a round, one thread an operator.

    Random ones, and the median; or `real` ones, on which exits differ, and the mean. Files that this process wrote
    come with an `example` of what the network takes; others take images.
    """
    calls = {run: _calling(path, example, real) for run, path in counted("opening networks", files.items(), len(files))}
    times = time_images(calls, _IMAGES if real is None else len(real), threads=1, repeats=9)
    found = {run: each.median if real is None else each.mean for run, each in times.items()}
    return Timed(found, f"{processor()}, 1 thread")


def _calling(path: Path, example: Any, real: Array | None) -> Callable[[int], object]:
    if example is not None and not isinstance(example, Tensor):  # several inputs
        session = open_session(path, threads=1)
        feeds = feeds_of(session, images(random_like(portable(example), 1), 1))
        return lambda number: session.run(None, feeds)
    model = OnnxModel(path, threads=1, own=example is not None)
    if real is not None:
        return lambda number: model(real[number : number + 1])
    noise = model.noise(1)
    return lambda number: model(**noise)


def _finished(name: str) -> Report:
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / REPORT).exists():
        begun = (folder / SETTINGS).exists()
        what = f"is not finished; finish it with compressor resume {name}" if begun else "holds no run"
        raise FileError(f"{name} {what}")
    return Report.load(folder)
