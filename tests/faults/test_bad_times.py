"""Disk full, folders that cannot be written, data that go away, numbers that go bad, memory that runs out."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.cli import main
from compressor.training import microbatches
from compressor.training.checkpoint import latest_checkpoint
from compressor.training.data import Data
from compressor.training.loop import plain
from compressor.training.task import Task
from tests.faults.killing import without_times
from tests.faults.runs import RUNS
from tests.training.test_folders import write_images

_QUICK = (*RUNS["train"], "--epochs", "1")


@dataclass
class Ran:
    """What a command left behind."""

    code: int
    err: str

    @property
    def told(self) -> str:
        """The one line of an error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def compressor(capsys, monkeypatch, tmp_path):
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return Ran(int(left.value.code or 0), capsys.readouterr().err)

    return call


def nothing_half_written(run: Path) -> None:
    names = {each.name for each in run.iterdir()} - {".lock"}
    assert not [name for name in names if name.startswith(".") or name.endswith(".tmp")]
    assert "report.json" not in names


@pytest.mark.parametrize("after", [0, 1, 4], ids=["settings", "first checkpoint", "later"])
def test_full_disk_is_one_line_and_leaves_what_was_whole(compressor, monkeypatch, tmp_path, after):
    calls = [0]
    flush = os.fsync

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    ran = compressor(*RUNS["train"], "--out", "run")
    assert ran.code == 1
    assert "No space left on device" in ran.told
    nothing_half_written(tmp_path / "run")
    if after > 1:
        monkeypatch.setattr(os, "fsync", flush)
        assert latest_checkpoint(tmp_path / "run")[0]["model"]
        assert compressor("resume", "run").code == 0
        assert (tmp_path / "run" / "report.json").exists()


def test_small_disk_that_fills_up_is_one_line(compressor, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], stderr=subprocess.DEVNULL
    ):
        pytest.skip("a small disk cannot be mounted here")
    try:
        ran = compressor(*RUNS["finetune"], "--out", str(disk / "run"))
        assert ran.code == 1
        assert "No space left on device" in ran.told
        nothing_half_written(disk / "run")
    finally:
        subprocess.check_call(["umount", "--lazy", str(disk)])  # the handled error may still hold an open file


def test_metrics_that_cannot_be_written_say_how_to_go_on(compressor, monkeypatch, tmp_path):
    write = Path.open

    def refused(self: Path, mode: str = "r", *more: Any, **others: Any) -> Any:
        if self.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, mode, *more, **others)

    monkeypatch.setattr(Path, "open", refused)
    ran = compressor(*_QUICK, "--out", "run")
    assert ran.code == 1
    assert "compressor resume" in ran.told


def test_folder_under_a_file_is_one_line(compressor, tmp_path):
    (tmp_path / "file").write_text("x")
    ran = compressor(*_QUICK, "--out", "file/run")
    assert ran.code in (1, 2)
    assert ran.told


def test_data_gone_half_way_is_one_line_and_the_run_goes_on_when_they_are_back(compressor, monkeypatch, tmp_path):
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            write_images(tmp_path / "data" / split / kind, 24)
    monkeypatch.setattr("compressor.training.folders.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("compressor.training.streaming.processor_count", lambda: 0)
    real = Data.training
    calls = [0]

    def vanish(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            (tmp_path / "data").rename(tmp_path / "gone")
        return real(*arguments)

    monkeypatch.setattr(Data, "training", vanish)
    arch = ("--arch", RUNS["train"][2], "--arch-arg", "width=0.25", "--input", "1x8x8")
    command = ("train", *arch, "--data", f"folder:{tmp_path / 'data'}", "--epochs", "3", "--batch-size", "4")
    ran = compressor(*command, "--no-latency", "--no-onnx", "--device", "cpu", "--out", "run")
    assert ran.code == 1
    assert "can be read" in ran.told
    nothing_half_written(tmp_path / "run")
    (tmp_path / "gone").rename(tmp_path / "data")
    again = compressor("resume", "run")
    assert again.code == 0, again.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_outside_of_training_says_how_to_go_on(compressor, monkeypatch, number, code):
    def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("compressor.runs.results.measure", interrupted)
    ran = compressor(*_QUICK, "--out", "run")
    assert ran.code == code
    assert ran.told == "error: stopped; to go on: compressor resume run"
    monkeypatch.undo()


def test_numbers_that_go_bad_name_step_and_rate(compressor, tmp_path):
    ran = compressor(*_QUICK, "--lr", "1e30", "--schedule", "constant", "--out", "run")
    assert ran.code == 1
    assert re.search(r"no longer finite at step [123] \(learning rate 1e\+30\)", ran.told), ran.told
    assert "--on-nan rollback" in ran.told
    assert latest_checkpoint(tmp_path / "run")[0]["counters"]["step"] == 0


def test_rollback_ends_and_is_told(compressor):
    ran = compressor(*_QUICK, "--lr", "1e30", "--on-nan", "rollback", "--out", "run")
    assert ran.code == 1
    assert ran.err.count("of the learning rate") == 3


def test_memory_that_runs_out_halves_the_pieces_and_reaches_the_report(compressor, monkeypatch, tmp_path):
    def scarce(_: object, task: Task, label_smoothing: float = 0.0) -> microbatches.Step:
        step = plain(task, label_smoothing)

        def attempt(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
            if len(x) > 40:
                raise torch.OutOfMemoryError("out of memory")
            return step(model, x, y)

        return attempt

    monkeypatch.setattr("compressor.runs.tuning.step_of", scarce)
    ran = compressor(*_QUICK, "--out", "run")
    assert ran.code == 0, ran.err
    notes = json.loads((tmp_path / "run" / "report.json").read_text())["notes"]
    assert any("out of memory: 32 images" in note for note in notes)


@pytest.mark.parametrize(
    "name", ["prune", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "prune")]
)
def test_same_command_gives_the_same_report_but_for_times(compressor, monkeypatch, tmp_path, name):
    reports = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        assert compressor(*RUNS[name], "--out", "run").code == 0
        reports.append(without_times(json.loads((tmp_path / place / "run" / "report.json").read_text())))
    assert reports[0] == reports[1]
