"""Replacing an early stage as a whole run: broken off in either phase it goes on to the same network."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import compressor
from compressor.primenet.settings import REPRESENTATION, PrimeNetSettings
from compressor.runs.job import TrainJob
from compressor.runs.jobs import ReplaceJob
from compressor.runs.resume import resume
from compressor.runs.run import run
from compressor.runs.settings import ModelSettings, OutputSettings
from compressor.training.events import BatchEvent
from compressor.training.interrupt import Interrupted
from compressor.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
SMALL = ModelSettings(arch=f"{ROOT / 'sample_models' / 'digits_cnn.py'}:build", arch_arg=(("width", 0.25),))
PAPERS = ModelSettings(
    arch=f"{ROOT / 'sample_models' / 'primenet.py'}:build",
    arch_arg=(("width", 0.125), ("size", 12), ("retrain_epochs", 1)),
)
CHOSEN = {"epochs": 2, "batch_size": 100, "log_seconds": 0.0, "device": "cpu"}


def out(folder: Path) -> OutputSettings:
    return OutputSettings(str(folder), latency=False, onnx=False)


def replacing(folder: Path) -> ReplaceJob:
    settings = PrimeNetSettings(fit="stride", retrain_epochs=1, retrain_batch_size=50)
    training = replace(REPRESENTATION, **CHOSEN)
    return ReplaceJob(SMALL, "digits", out(folder), until="5", primenet=settings, training=training)


def learning(folder: Path) -> TrainJob:
    return TrainJob(PAPERS, "digits", out(folder), training=TrainSettings(**CHOSEN), chosen=tuple(CHOSEN))


RUNS = {"replace": replacing, "train": learning}


@pytest.fixture(scope="module", params=["replace", pytest.param("train", marks=pytest.mark.slow)])
def whole(request, tmp_path_factory):
    """A run's name, the folder of one that was left alone, and its report."""
    job = RUNS[request.param]
    folder = tmp_path_factory.mktemp("whole")
    return request.param, folder, run(job(folder))


@pytest.mark.parametrize("epoch", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["first phase", "second phase"])
def test_a_run_that_was_broken_off_comes_to_the_same_end(whole, epoch, tmp_path):
    name, folder, expected = whole
    job = RUNS[name]

    def stop(event: object) -> None:
        if isinstance(event, BatchEvent) and (event.epoch, event.batch) == (epoch, 4):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="compressor resume"):
        run(job(tmp_path / "broken"), stop)
    report = resume(str(tmp_path / "broken"))
    one, other = (compressor.load(each / "model.safetensors").state_dict() for each in (folder, tmp_path / "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert report.after.top1 == expected.after.top1 and report.notes == expected.notes
    assert report.sections == expected.sections
    assert [row["epoch"] for row in report.rows] == [0, 1, 2]
