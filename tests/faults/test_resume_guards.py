"""A run folder from elsewhere runs nobody's code, and two runs never write to one folder."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from compressor.errors import CompressorError, FileError, UsageError
from compressor.runs.folder import RunFolder
from compressor.runs.job import TrainJob, flat
from compressor.runs.resume import resume
from compressor.runs.settings import ModelSettings, OutputSettings
from compressor.training.checkpoint import NAME
from tests.faults.hostile_pickles import source
from tests.faults.runs import ARCH, MODEL


def recorded(folder: Path, model: ModelSettings, **changes: object) -> Path:
    """A run folder as somebody could have made it by hand."""
    folder.mkdir(parents=True)
    job = TrainJob(model, "digits", OutputSettings(str(folder), latency=False, onnx=False))
    settings = {**flat(job), "cwd": str(folder), **changes}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def test_architecture_of_a_strange_folder_is_not_run(tmp_path):
    canary, run = tmp_path / "canary", tmp_path / "run"
    recorded(run, ModelSettings(arch="net.py:build"))
    (run / "net.py").write_text(f"{source(canary)}\ndef build(**_): {source(canary)}\n")
    with pytest.raises(UsageError, match="never named on this machine"):
        resume(str(run))
    assert not canary.exists()


def test_trust_of_a_strange_folder_is_not_taken_over(tmp_path):
    run = recorded(tmp_path / "run", ModelSettings(MODEL, trust=True))
    with pytest.raises(UsageError, match="`trust` again"):
        resume(str(run))


def test_model_that_changed_since_is_refused(tmp_path):
    run = recorded(tmp_path / "run", ModelSettings(MODEL), model_sha256="0" * 64)
    with pytest.raises(UsageError, match="has changed since the run began"):
        resume(str(run))


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "many"), ("lr", [1]), ("optimizer", "rm -rf"), ("arch_arg", 3), ("latency", 1), ("milestones", ["x"])],
)
def test_settings_of_another_kind_are_one_line(tmp_path, name, value):
    run = recorded(tmp_path / "run", ModelSettings(arch=ARCH), **{name: value})
    with pytest.raises(FileError, match=rf"settings.json is damaged: {name}") as caught:
        resume(str(run))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 200, b"compressor checkpoint 1 " + b"0" * 65 + b"rest"])
def test_hostile_checkpoint_is_one_line(tmp_path, content):
    run = recorded(tmp_path / "run", ModelSettings(arch=ARCH, arch_arg=(("width", 0.25),)))
    (run / NAME).write_bytes(content)
    with pytest.raises(CompressorError) as caught:
        resume(str(run))
    assert "\n" not in str(caught.value)


def test_second_run_on_a_folder_is_refused_until_the_first_is_gone(tmp_path):
    out = OutputSettings(str(tmp_path / "run"), overwrite=True)
    held, holding = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            folder = RunFolder(out)
            folder.begin({})
            os.write(holding, b"1")
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(holding)
    try:
        assert os.read(held, 1) == b"1"
        for resuming in (False, True):
            with pytest.raises(UsageError, match=f"another run is writing.*{holder}"):
                RunFolder(out, resume=resuming).begin({})
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(held)
    RunFolder(out).begin({})


def test_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CompressorError) as caught:
        RunFolder(OutputSettings(str(tmp_path / "file" / "run"))).begin({})
    assert "\n" not in str(caught.value)


def test_scraps_of_a_killed_run_are_cleared_away(tmp_path):
    run = recorded(tmp_path / "run", ModelSettings(arch=ARCH))
    (run / ".model.pt.1.tmp").write_text("half")
    (run / ".state.safetensors.1.tmp").write_text("half")
    (run / ".export-x").mkdir()
    (run / "mine.txt").write_text("stays")
    folder = RunFolder(OutputSettings(str(run)), resume=True)
    folder.begin({})
    assert sorted(each.name for each in run.iterdir()) == [".lock", "mine.txt", "settings.json"]


def test_run_killed_before_its_settings_were_written_is_begun_again_without_asking(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("1\n")
    (run / ".settings.json.1.tmp").write_text("{")
    folder = RunFolder(OutputSettings(str(run)))
    folder.begin({"command": "train"})
    assert sorted(each.name for each in run.iterdir()) == [".lock", "settings.json"]
