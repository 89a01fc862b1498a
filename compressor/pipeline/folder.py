"""The folder of a run: refused when it holds anything, files appear in it whole, metrics line by line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import FileError, UsageError
from compressor.pipeline.settings import OutputSettings
from compressor.pipeline.stages import PeriodEvent, Stage, Tell
from compressor.reporting.report import write_whole
from compressor.training.events import EpochEvent, Event

# What a run writes; an earlier run's go when another begins in its place, everything else in the folder stays.
MODEL, ONNX, REPORT, PAGE = "model.pt", "model.onnx", "report.json", "report.html"
METRICS, SETTINGS = "metrics.jsonl", "settings.json"
_ALL = (MODEL, ONNX, REPORT, PAGE, METRICS, SETTINGS, "checkpoint.pt", "checkpoint.previous.pt")


class RunFolder:
    """The files of one run; `resuming` says that the run was broken off and goes on from its last checkpoint."""

    def __init__(self, output: OutputSettings, *, resume: bool = False) -> None:
        """Claim a folder without touching it.

        Raises:
            UsageError: no folder was given, or it holds something and may not be overwritten.
        """
        if output.out is None:
            raise UsageError("say where the results go with --out FOLDER, or --dry-run to see what would be done")
        self.path = Path(output.out).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file: give --out the name of a folder")
        self.resuming = resume
        if not output.overwrite and not resume and self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty: give another --out, or --overwrite to replace the run in it")

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder and write down the settings; an earlier run's files are gone from here on.

        A run that goes on finds all that already.

        Raises:
            FileError: the folder cannot be written.
        """
        if self.resuming:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in _ALL:
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise FileError(f"{self.path} cannot be written ({error.strerror}): choose another --out") from error
        write_whole(self.path / SETTINGS, json.dumps({**settings, "cwd": str(Path.cwd())}, indent=1) + "\n")

    def recording(self, tell: Tell) -> Tell:
        """`tell`, with every epoch's and period's row written down as well."""

        def record(event: Event | Stage | PeriodEvent) -> None:
            if isinstance(event, EpochEvent | PeriodEvent):
                with (self.path / METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(event.row) + "\n")
            tell(event)

        return record

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The metrics of a whole run, without the lines that a run which was broken off wrote twice."""
        if rows:
            write_whole(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    def __truediv__(self, name: str) -> Path:
        return self.path / name
