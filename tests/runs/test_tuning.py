"""Fine-tuning that never leaves a network worse than it was, and that may follow the network as it came."""

import copy

import pytest
import torch

import compressor
from compressor.errors import UsageError
from compressor.pruning.adapnet.settings import PRESETS
from compressor.runs.phases import Phases, TrainingPhases
from compressor.runs.settings import ModelSettings
from compressor.runs.subject import open_subject
from compressor.runs.tuning import finetune_, on_validation, step_for
from compressor.training.checkpoint import Saving
from compressor.training.data import open_data
from compressor.training.settings import DataSettings, DistillSettings, TrainSettings

MODEL = "sample_models/digits_cnn.safetensors"


def subject():
    return open_subject(ModelSettings(MODEL), "digits", DataSettings(), "cpu")


def weights(module):
    return [value.clone() for value in module.state_dict().values()]


def test_weights_stay_where_fine_tuning_harms_them(tmp_path):
    given, told = subject(), []
    before, weights_before = on_validation(given), weights(given.module)
    wild = TrainSettings(epochs=1, lr=1e-1, weight_decay=2.0, momentum=0.0)  # shrinks all weights to nothing
    history = finetune_(given, wild, None, Saving(tmp_path), told.append, before)
    assert history.rows[-1]["validation_top1"] < before
    assert "the weights from before it are kept" in history.notes[-1]
    assert all(torch.equal(one, two) for one, two in zip(weights(given.module), weights_before))
    assert on_validation(given) == before


def test_what_fine_tuning_gains_is_kept(tmp_path):
    given = subject()
    history = finetune_(given, TrainSettings(epochs=1, lr=1e-3), None, Saving(tmp_path), lambda _: None, 0.0)
    assert not history.notes and history.rows[-1]["validation_top1"] > 0


def test_a_step_without_a_teacher_is_plain_cross_entropy_or_the_networks_own():
    module = subject().module
    training = TrainSettings()
    assert step_for(module, None, DistillSettings(), training, open_data("digits")) is None
    assert step_for(module, copy.deepcopy(module), DistillSettings(True), training, open_data("digits")) is not None
    assert step_for(module, copy.deepcopy(module), DistillSettings(False), training, open_data("digits")) is None


def of_the_phases(module, settings, training, data):
    phases = Phases.of(PRESETS["quick"], training, trained=True)
    return TrainingPhases(module, data, None, phases, settings, trained=True)._distil


def of_fine_tuning(module, settings, training, data):
    return step_for(module, copy.deepcopy(module), settings, training, data)


@pytest.mark.parametrize("made", [of_fine_tuning, of_the_phases])
def test_labels_are_smoothed_beside_a_teacher_too(made):
    given, losses = subject(), []
    x, y = next(given.data.passing(given.data.validation, 32))
    for smoothing in (0.0, 0.5):
        step = made(given.module, DistillSettings(True), TrainSettings(label_smoothing=smoothing), given.data)
        losses.append(float(step(given.module, x, y)[0]))
    assert losses[0] + 0.1 < losses[1]


@pytest.mark.parametrize("verb", [pytest.param("prune", marks=pytest.mark.slow), "finetune"])
def test_distillation_can_be_asked_for(verb, tmp_path):
    more = {"ratio": 0.5, "method": "l1", "reconstruct": False} if verb == "prune" else {}
    run = getattr(compressor, verb)
    small = {"latency": False, "onnx": False, "epochs": 1, "data": "digits"}
    plain = run(MODEL, out=tmp_path / "plain", **small, **more)
    taught = run(MODEL, out=tmp_path / "taught", distill=True, **small, **more)
    assert plain.rows[0]["train_loss"] != taught.rows[0]["train_loss"]
    assert taught.settings["distill"] is True


def test_distillation_has_no_place_in_training_from_random_weights(tmp_path):
    with pytest.raises(UsageError, match="distill"):
        compressor.train(
            arch="sample_models/digits_cnn.py:build", data="digits", epochs=1, out=tmp_path / "run", distill=True
        )
