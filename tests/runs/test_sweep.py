"""`sweep` in Python: a time for all of its runs, and its results timed in turn."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compressor.errors import CompressorError, UsageError
from compressor.exporting.onnx import export_onnx
from compressor.runs import compare as comparing
from compressor.runs import sweep as sweeping
from compressor.runs.estimate import Estimate
from compressor.runs.jobs import SweepJob
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings, SweepSettings, TimeSettings
from compressor.runs.sweep import predicted, sweep
from tests.runs.tasks import Pointer

DIGITS = ModelSettings(str(Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors"))


def job(folder, latency=False, seconds=None, **grid):
    output = OutputSettings(str(folder), latency=latency, onnx=latency)
    training = replace(FINETUNE, device="cpu", epochs=1)
    settings = SweepSettings(**{"methods": ("l1",), "targets": (0.8, 0.6), "reconstruct": False, **grid})
    return SweepJob(DIGITS, "digits", output, training=training, grid=settings, time=TimeSettings(seconds))


@pytest.fixture
def paced(monkeypatch):
    """Every run is estimated to take 10 s, and 2 s an epoch; planning takes no time."""
    tried = []

    def estimate(run):
        tried.append(Path(run.job.output.out).name)
        return Estimate(30.0, 10.0, None, 2.0)

    monkeypatch.setattr(sweeping, "estimate", estimate)
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    return tried


def test_a_time_is_shared_by_all_runs_alike(tmp_path, paced):
    """Three runs have time for two epochs each in 47 s: 30 s of them are not training."""
    asked = job(tmp_path / "sweep", seconds=47.0)
    commands = [cell.job.command for cell in predicted(asked)]
    assert all("--epochs 2" in command and "--for" not in command for command in commands)
    assert not (tmp_path / "sweep").exists()
    assert paced == ["control", "l1-0.8"]  # one of every method
    compared = sweep(asked)
    assert {point.epochs for point in compared.points if point.method != "start"} == {2}

    (tmp_path / "sweep" / "l1-0.6" / "report.json").unlink()
    paced.clear()
    wider = sweep(replace(asked, grid=replace(asked.grid, targets=(0.8, 0.7))))  # goes on with the same epochs
    assert not paced and {point.epochs for point in wider.points if point.method != "start"} == {2}


def test_what_was_decided_in_trying_is_not_decided_again(tmp_path, paced, monkeypatch):
    carried = {}
    monkeypatch.setattr(sweeping, "carry_out", lambda cell, *given: carried.update({cell.name: given[-1]}))
    with pytest.raises(CompressorError):
        sweep(job(tmp_path / "sweep", seconds=47.0))
    assert carried["l1-0.8"] and not carried["l1-0.6"]


def test_too_short_a_time_says_what_would_do_and_leaves_nothing(tmp_path, paced):
    with pytest.raises(UsageError, match=r"all that 3 runs do besides, takes about 0:36 here"):
        sweep(job(tmp_path / "sweep", seconds=35.0))
    assert not (tmp_path / "sweep").exists()


def test_a_model_that_cannot_be_opened_leaves_no_folder(tmp_path):
    """The same folder may be named again once the mistake is mended."""
    broken = tmp_path / "net.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(CompressorError):
        sweep(replace(job(tmp_path / "sweep"), model=ModelSettings(str(broken))))
    assert not (tmp_path / "sweep").exists()


def test_a_folder_that_another_process_writes_to_is_left_alone(tmp_path, monkeypatch):
    settings = tmp_path / "sweep" / "settings.json"
    settings.parent.mkdir()
    settings.write_text("of the other")
    (settings.parent / "comparison.json").write_text("too")
    monkeypatch.setattr("compressor.runs.lock._lock", lambda descriptor: False)
    asked = job(settings.parent)
    with pytest.raises(UsageError, match="another run is writing"):
        sweep(replace(asked, output=replace(asked.output, overwrite=True)))
    assert settings.read_text() == "of the other" and (settings.parent / "comparison.json").exists()


def test_results_are_timed_in_turn(tmp_path, monkeypatch):
    """Each run alone is timed in none: that of all would be of different hours."""
    monkeypatch.setattr(comparing, "_IMAGES", 2)
    compared = sweep(job(tmp_path / "sweep", latency=True, control=False, targets=(0.5,)))
    assert compared.in_turn and all(point.latency for point in compared.points if point.method != "start")
    assert json.loads((tmp_path / "sweep" / "comparison.json").read_text())["timed_in_turn_on"]


def test_files_of_several_inputs_are_timed(tmp_path):
    model = Pointer().eval()
    example = {"image": torch.rand(1, 3, 8, 8), "mask": torch.ones(1, 1, 8, 8)}
    export_onnx(model, example, tmp_path / "net.onnx")
    assert comparing.time_files({"net": tmp_path / "net.onnx"}, example).milliseconds["net"] > 0


def test_files_of_one_input_are_timed_on_real_images(tmp_path):
    export_onnx(nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), tmp_path / "net.onnx")
    real = torch.rand(5, 3, 8, 8).numpy()
    for example in (None, torch.rand(1, 3, 8, 8)):
        assert comparing.time_files({"net": tmp_path / "net.onnx"}, example, real).milliseconds["net"] > 0
