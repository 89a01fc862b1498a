"""A whole detaching run: broken off and gone on with, and what its report says of sharing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.exits.settings import CNSN, NSN, DetachSettings, falling
from compressor.pruning.settings import PruneSettings
from compressor.runs.job import TrainJob
from compressor.runs.jobs import DetachJob, PruneJob
from compressor.runs.models import open_model
from compressor.runs.resume import resume
from compressor.runs.run import dry_run, run
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings
from compressor.training.events import EpochEvent

ROOT = Path(__file__).parents[2]
DIGITS = ModelSettings(str(ROOT / "sample_models" / "digits_cnn.safetensors"))
SLIM = ModelSettings(arch=f"{ROOT / 'sample_models' / 'digits_cnn.py'}:build", arch_arg=(("width", 0.25),))
PERCEPTRON = ModelSettings(arch=f"{ROOT / 'sample_models' / 'mlp.py'}:build", arch_arg=(("size", 8),))


class Killed(Exception):
    """Stands for a machine that goes down."""


def job(model: ModelSettings, out: Path, **choice: object) -> DetachJob:
    settings = DetachSettings(**choice)
    training = falling(settings.method, replace(NSN if settings.method == "nsn" else CNSN, epochs=2, batch_size=256))
    output = OutputSettings(str(out), latency=False, onnx=False)
    return DetachJob(model, "digits", output, choice=settings, training=training)


def dies_after_one_epoch(event: object) -> None:
    if isinstance(event, EpochEvent):
        raise Killed


@pytest.mark.parametrize(
    ("model", "choice"),
    [(SLIM, {"exits": 1}), pytest.param(PERCEPTRON, {"method": "nsn"}, marks=pytest.mark.slow)],
    ids=["cnsn", "nsn"],
)
def test_a_broken_run_goes_on_to_the_same_weights(monkeypatch, tmp_path, model, choice):
    monkeypatch.chdir(ROOT)
    whole = run(job(model, tmp_path / "whole", **choice))
    with pytest.raises(Killed):
        run(job(model, tmp_path / "broken", **choice), dies_after_one_epoch)
    resume(str(tmp_path / "broken"))
    one, other = (open_model(tmp_path / name / "model.safetensors").module.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    base, exits = whole.details["base"], whole.details["exits"]
    assert all(row["shared_params"] + row["own_params"] == row["params"] for row in (base, *exits))
    assert all(row["own_params"] < row["shared_params"] and row["macs"] < base["macs"] for row in exits)


@pytest.mark.slow
def test_a_detached_model_is_pruned_and_trained_further_as_one(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    run(job(DIGITS, tmp_path / "detached", exits=1))
    short = replace(FINETUNE, epochs=1, batch_size=256)
    output = OutputSettings(str(tmp_path / "pruned"), latency=False, onnx=False)
    model = ModelSettings(str(tmp_path / "detached" / "model.safetensors"))
    choice = PruneSettings(ratio=0.25, allocate="uniform")
    report = run(PruneJob(model, "digits", output, choice=choice, training=short))
    base, sub_model = report.sections[0].tables[0].rows
    assert (base[0], sub_model[1]) == ("base", "7")
    module = open_model(tmp_path / "pruned" / "model.safetensors").module
    assert module.submodels[0].step_down.conv.out_channels == module.base[3].out_channels == 48
    output = OutputSettings(str(tmp_path / "tuned"), latency=False, onnx=False)
    command = "compressor finetune"
    model = ModelSettings(str(tmp_path / "pruned" / "model.safetensors"))
    tuned = run(TrainJob(model, "digits", output, training=short, command=command))
    assert len(tuned.sections[0].tables[0].rows) == 2
    moved = open_model(tmp_path / "tuned" / "model.safetensors").module.state_dict()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, moved[name])}
    assert {"submodels.0.step_down.conv.weight", "base.0.weight", "submodels.0.tail.8.running_mean"} <= changed


def test_a_pickled_network_is_detached_without_an_architecture(tmp_path):
    layers = [layer for c in (1, 8, 8) for layer in (nn.Conv2d(c, 8, 3), nn.BatchNorm2d(8), nn.ReLU())]
    torch.save(nn.Sequential(*layers, nn.Dropout(0.1), nn.Flatten(), nn.Linear(32, 10)), tmp_path / "net.pt")
    model = ModelSettings(str(tmp_path / "net.pt"), input=(1, 8, 8))
    done = run(job(model, tmp_path / "run", exits=1))
    assert [row["at"] for row in (done.details["base"], *done.details["exits"])] == [None, "6"]
    module = open_model(tmp_path / "run" / "model.safetensors").module
    base, sub_model = module.base.state_dict(), module.detach(1).tail.state_dict()
    assert base["7.running_mean"].any() and not torch.equal(base["7.running_mean"], sub_model["7.running_mean"])
    assert sub_model["6.weight"].data_ptr() == base["6.weight"].data_ptr()
    assert module(torch.zeros(2, 1, 8, 8), exit=1).shape == (2, 10)


def test_training_is_the_papers_where_nobody_chose():
    stepped = falling("cnsn", replace(CNSN, epochs=300, schedule="step"))
    assert (stepped.milestones, stepped.gamma, stepped.warmup_epochs) == ((50, 100, 150), 0.1, 1)
    nested = falling("nsn", replace(NSN, epochs=600, lr=0.2))
    assert (nested.milestones, nested.lr, nested.momentum) == ((200, 400), 0.2, 0.9)
    assert nested.gamma == pytest.approx(1 / 3)
    short = falling("cnsn", CNSN)
    assert (short.schedule, short.milestones, short.lr) == ("cosine", (), 0.01)
    assert (CNSN.batch_size, CNSN.lr, CNSN.weight_decay, NSN.batch_size) == (32, 0.01, 6e-4, 128)


def test_a_sub_model_that_saves_next_to_nothing_is_named(tmp_path):
    """Of the sample's two sub-models the first has 0.99 of the multiply-adds, the second a third."""
    done = dry_run(job(DIGITS, tmp_path, exits=2))
    [note] = [note for note in done.notes if "next to nothing" in note]
    assert note.startswith("exit 1 has 99% of the base's multiply-adds")
