"""Reconstruction without data."""

import copy

import pytest
import torch
from torch import nn

import compressor
from compressor.errors import UsageError
from compressor.pruning.reconstruction import calibration
from compressor.pruning.reconstruction.calibration import dead_leaves, synthetic_inputs
from compressor.training.data import open_data
from compressor.training.evaluate import evaluate

DIGITS = "sample_models/digits_cnn.safetensors"


@pytest.mark.parametrize("shape", [(2, 64), (3, 24, 16), (1, 8, 8, 8)])
def test_dead_leaves_are_like_images(shape):
    images = dead_leaves(24, shape, torch.Generator().manual_seed(0))
    assert images.shape == (24, *shape) and torch.isfinite(images).all()
    assert images.std().item() == pytest.approx(1, abs=1e-3) and abs(images.mean()) < 0.3
    assert torch.equal(images, dead_leaves(24, shape, torch.Generator().manual_seed(0)))
    for dim in range(2, images.ndim):  # neighbours are alike, those far away are not
        near = (images.diff(dim=dim) == 0).float().mean()
        assert near > 0.5


def test_inputs_are_made_up_for_networks_of_images_only(monkeypatch):
    monkeypatch.setattr(calibration, "_VALUES_MADE", 72 * 192)
    assert sum(map(len, synthetic_inputs(torch.zeros(1, 3, 8, 8)))) == 72
    assert sum(map(len, synthetic_inputs(torch.zeros(1, 3, 16, 16)))) == calibration._FEWEST_MADE
    assert synthetic_inputs(torch.zeros(1, 16)) == synthetic_inputs(torch.zeros(1, 8, 3, dtype=torch.int64)) == []
    assert synthetic_inputs((torch.zeros(1, 3, 8, 8),)) == []


def test_a_network_without_data_is_nearer_to_itself_when_it_was_refitted(monkeypatch):
    monkeypatch.setattr(calibration, "_MOST_MADE", 64)
    dense, data = compressor.load(DIGITS), open_data("digits")
    example, nets = torch.zeros(1, 1, 8, 8), {}
    for given in (None, "synthetic"):
        nets[given] = copy.deepcopy(dense)
        report = compressor.prune_(nets[given], example, method="l1", target_macs=0.3, data=given)
        assert any("images made up" in note for note in report.notes) == (given is not None)
    plain, refitted = (evaluate(net, data.test, data).top1 for net in nets.values())
    assert refitted > plain + 0.1
    norms = [[each.running_var for each in net.modules() if isinstance(each, nn.BatchNorm2d)] for net in nets.values()]
    assert norms[0] and all(torch.equal(a, b) for a, b in zip(*norms, strict=True))  # those of the training


class OneAtATime(nn.Sequential):
    def forward(self, x):
        if len(x) > 2:
            raise ValueError("one at a time")
        return super().forward(x)


def test_a_network_that_takes_few_images_is_left_as_it_was_cut():
    module = OneAtATime(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    report = compressor.prune_(module, torch.zeros(1, 3, 8, 8), data="synthetic")
    assert any("does not run on 32 images of (3, 8, 8): one at a time" in note for note in report.notes)


def test_what_cannot_be_made_up_is_said():
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    report = compressor.prune_(module, torch.zeros(1, 8), data="synthetic")
    assert any("not refitted" in note for note in report.notes)
    with pytest.raises(UsageError, match="data is 'digits'"):
        compressor.prune_(module, torch.zeros(1, 8), data="digits")
