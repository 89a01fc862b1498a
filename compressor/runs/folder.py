"""The folder of a run: refused when it holds anything, files appear in it whole, metrics line by line."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import FileError, UsageError
from compressor.files.paths import check_writable, write_whole
from compressor.loading.content import unreadable
from compressor.report.manifest import MANIFEST
from compressor.runs.lock import LOCK, FolderLock
from compressor.runs.plans import NAME as PLAN
from compressor.runs.settings import OutputSettings
from compressor.runs.stages import Callback, PeriodEvent, RunEvent
from compressor.training import checkpoint, distributed
from compressor.training.events import EpochEvent

# What a run writes; an earlier run's go when another begins in its place, everything else in the folder stays.
MODEL, ONNX, REPORT, PAGE = "model.safetensors", "model.onnx", "report.json", "report.html"
PACKAGE = "package"  # what shrink leaves in place of the model where INT8 is the cheapest
INT8 = "int8"  # a package beside the model
METRICS, SETTINGS = "metrics.jsonl", "settings.json"
_LONGEST_SETTINGS = 1 << 20  # characters
# Unfinished files of ours, and the folder that an export is made in.
SCRAPS = (".*.tmp", ".export-*")
_ALL = (MODEL, ONNX, REPORT, PAGE, METRICS, SETTINGS, checkpoint.NAME, checkpoint.PREVIOUS)


def named_folder(out: str | Path | None) -> Path:
    """The folder that results go to. Raises UsageError where there is no name, or one of a file."""
    if out is None:
        raise UsageError("say where the results go with `out` FOLDER, or --dry-run to see what would be done")
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: give `out` the name of a folder")
    return folder


class RunFolder:
    """The files of one run; `resuming` says that the run was broken off and goes on from its last checkpoint.

    Of several processes the first alone writes them.
    """

    def __init__(self, output: OutputSettings, *, model: str | None = None, resume: bool = False) -> None:
        """Claim a folder without touching it; `model` is the file that the run starts from.

        Raises:
            UsageError: no folder was given, or it holds something and may not be overwritten, or the model.
            FileError: it cannot be written.
        """
        self.path = named_folder(output.out)
        self.named = output.out  # as it was given when the run began, wherever its folder is now
        self.resuming = resume
        self._may_replace = output.overwrite or resume
        self._lock: FolderLock | None = None
        self._check_free()
        if not resume:
            refuse_deleting(model, (*(self.path / name for name in _ALL), *(self.path / INT8).glob("*")))
        if distributed.first():
            check_writable(self.path)

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder, shut others out and write down the settings; an earlier run's files are gone from here on.

        A run that goes on keeps them. Others stay out until the process ends, or this object does.

        Raises:
            FileError: the folder cannot be written.
            UsageError: another run writes to it, or did so since this one was started.
        """
        try:
            if not distributed.first():
                return
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
            self._check_free()
            for scrap in self._scraps():
                shutil.rmtree(scrap) if scrap.is_dir() else scrap.unlink()
            for name in () if self.resuming else _ALL:
                (self.path / name).unlink(missing_ok=True)
            if not self.resuming and (self.path / INT8 / MANIFEST).exists():
                shutil.rmtree(self.path / INT8)
        except OSError as error:
            raise FileError(f"{self.path} cannot be written ({error.strerror}): choose another `out`") from error
        if self.resuming:
            self.named = read_settings(self.path).get("out", self.named)
        else:
            started = {**settings, "cwd": str(Path.cwd()), "model_sha256": file_sha256(settings.get("model"))}
            write_whole(self.path / SETTINGS, json.dumps(started, indent=1) + "\n")

    def finish(self) -> None:
        """Let others in: all that the run leaves is written."""
        if self._lock is not None:
            self._lock.release()

    def decided(self) -> dict[str, Any]:
        """How a run that goes on had edited its network, by its last checkpoint; empty where there is none."""
        content = checkpoint.reached(checkpoint.Saving(self.path, resume=self.resuming))
        return {} if content is None else dict(content["structure"])

    def _check_free(self) -> None:
        if self._may_replace or not self.path.is_dir() or not distributed.first():
            return
        if {entry.name for entry in self.path.iterdir()} - {LOCK, PLAN, *(scrap.name for scrap in self._scraps())}:
            begun = (self.path / SETTINGS).is_file() and not (self.path / REPORT).exists()
            resume = f"go on with its run: compressor resume {self.path}; else " if begun else ""
            raise UsageError(
                f"{self.path} is not empty: {resume}give another `out`, or `overwrite` to replace the run in it"
            )

    def _scraps(self) -> list[Path]:
        """What a run that was killed in the middle of writing left behind."""
        return [entry for pattern in SCRAPS for entry in self.path.glob(pattern)]

    def recording(self, tell: Callback) -> Callback:
        """`tell`, with every epoch's and period's row written down as well."""

        def record(event: RunEvent) -> None:
            if isinstance(event, EpochEvent | PeriodEvent) and distributed.first():
                self._append(json.dumps(event.row))
            tell(event)

        return record

    def _append(self, line: str) -> None:
        path = self.path / METRICS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise FileError(
                f"{path} cannot be written ({error.strerror}): make room, then go on with compressor resume {self.path}"
            ) from error

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The metrics of a whole run, without the lines that a run which was broken off wrote twice."""
        if rows:
            write_whole(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    def __truediv__(self, name: str) -> Path:
        return self.path / name


def refuse_deleting(model: str | None, goes: Iterable[Path]) -> None:
    """Raise UsageError where the model that is read is among the files that go."""
    if model is not None and any(_same_file(each, Path(model)) for each in goes):
        raise UsageError(f"`overwrite` would delete {model}, which is read: give another `out`")


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def file_sha256(path: Any) -> str | None:
    """The hash of the file that a run starts from; None where it starts from an architecture.

    Raises FileError where it cannot be read.
    """
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(Path(path), error) from error


def read_settings(folder: Path) -> dict[str, Any]:
    """What a run wrote down when it began.

    Raises:
        FileError: there is no run in the folder, or its settings are damaged.
    """
    path = folder / SETTINGS
    try:
        with path.open(encoding="utf-8") as file:
            settings = json.loads(file.read(_LONGEST_SETTINGS))
    except OSError as error:
        raise FileError(f"there is no run in {folder} ({SETTINGS}: {error.strerror}): give a run's folder") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged ({error}): start the run again") from error
    if not isinstance(settings, dict):
        raise FileError(f"{path} is damaged: start the run again")
    return settings
