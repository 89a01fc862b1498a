"""A whole detaching run: broken off and gone on with, and what its report says of sharing."""

from pathlib import Path

import pytest
import torch

from compressor.loading import open_model
from compressor.pipeline.detach import detach
from compressor.pipeline.settings import DetachJob, ModelSettings, OutputSettings
from compressor.subnets.settings import CNSN, NSN, DetachSettings, training_for
from compressor.training.events import EpochEvent
from compressor.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
DIGITS = ModelSettings(str(ROOT / "sample_models" / "digits_cnn.pt"))
PERCEPTRON = ModelSettings(arch=f"{ROOT / 'sample_models' / 'mlp.py'}:build", arch_arg=(("size", 8),))


class Killed(Exception):
    """Stands for a machine that goes down."""


def job(model: ModelSettings, out: Path, **choice: object) -> DetachJob:
    settings = DetachSettings(**choice)
    training = training_for(settings.method, TrainSettings(epochs=2, batch_size=256), ("epochs", "batch_size"))
    output = OutputSettings(str(out), latency=False, onnx=False)
    return DetachJob(model, "digits", output, settings, training=training)


def dies_after_one_epoch(event: object) -> None:
    if isinstance(event, EpochEvent):
        raise Killed


@pytest.mark.parametrize(
    ("model", "choice"), [(DIGITS, {"exits": 1}), (PERCEPTRON, {"method": "nsn"})], ids=["cnsn", "nsn"]
)
def test_a_broken_run_goes_on_to_the_same_weights(monkeypatch, tmp_path, model, choice):
    monkeypatch.chdir(ROOT)
    whole = detach(job(model, tmp_path / "whole", **choice))
    with pytest.raises(Killed):
        detach(job(model, tmp_path / "broken", **choice), dies_after_one_epoch)
    detach(job(model, tmp_path / "broken", **choice), resume=True)
    one, other = (open_model(tmp_path / name / "model.pt").module.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for row in whole.rows:
        assert row.cost.shared_params + row.cost.own_params == row.cost.params
    base, *exits = whole.rows
    assert all(row.cost.own_params < row.cost.shared_params for row in exits)
    assert all(row.cost.macs < base.cost.macs for row in exits)


def test_training_is_the_papers_where_nobody_chose():
    assert training_for("cnsn", TrainSettings(epochs=300), ("epochs",)).milestones == (50, 100, 150)
    nested = training_for("nsn", TrainSettings(epochs=600, lr=0.2), ("epochs", "lr"))
    assert (nested.milestones, nested.lr, nested.momentum) == ((200, 400), 0.2, 0.9)
    assert nested.gamma == pytest.approx(1 / 3)
    assert training_for("cnsn", TrainSettings(), ()).milestones == (2, 3, 5)
    assert training_for("cnsn", TrainSettings(schedule="cosine"), ("schedule",)).milestones == ()
    assert (CNSN.batch_size, CNSN.lr, CNSN.weight_decay, NSN.batch_size) == (32, 0.01, 6e-4, 128)
