"""The public functions in whatever mode of torch, default device and type they are called."""

import pytest
import torch

import compressor
from tests.cli.command import ROOT
from tests.graph.test_neutral import MODES
from tests.untouched import untouched

DIGITS = str(ROOT / "sample_models" / "digits_cnn.safetensors")
CHANGED = {torch.get_default_dtype, torch.get_default_device, torch.is_grad_enabled, torch.is_inference_mode_enabled}


@pytest.mark.parametrize("name", MODES)
def test_files_are_opened_and_written_the_same_in_every_mode(name, tmp_path):
    known = compressor.load(DIGITS).state_dict()
    with MODES[name]():
        before = [ask() for ask in CHANGED]
        model = compressor.load(DIGITS)
        compressor.save(model, tmp_path / "model.safetensors", arch="sample:digits_cnn", input_shape=(1, 8, 8))
        assert [ask() for ask in CHANGED] == before
    assert all(p.requires_grad and not p.is_inference() for p in model.parameters())
    for found in (model.state_dict(), compressor.load(tmp_path / "model.safetensors").state_dict()):
        assert all(torch.equal(value, known[key]) and value.dtype == known[key].dtype for key, value in found.items())
    assert model(torch.zeros(1, 1, 8, 8)).requires_grad


@pytest.mark.parametrize(
    "name", ["inference", *(pytest.param(each, marks=pytest.mark.slow) for each in ("meta by default", "doubles"))]
)
def test_verbs_measure_and_train_in_every_mode(name, tmp_path):
    known = compressor.evaluate(DIGITS, data="digits", device="cpu").top1
    options = {"latency": False, "onnx": False, "device": "cpu"}
    with untouched(torch.nn.Linear(1, 1)), MODES[name]():  # random generators and settings of torch are the caller's
        assert compressor.evaluate(DIGITS, data="digits", device="cpu").top1 == known
        pruned = compressor.prune(DIGITS, out=tmp_path / "pruned", method="l1", **options)
        assert pruned.after.macs < pruned.before.macs
        if name == "inference":  # where nothing has gradients
            trained = compressor.finetune(
                DIGITS, out=tmp_path / "trained", data="digits", epochs=1, batch_size=512, **options
            )
            assert trained.rows and trained.after.top1 > 0.9
