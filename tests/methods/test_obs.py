"""Block OBS and the allocation of widths against slow, obvious versions."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.graph import capture
from compressor.methods.allocate import Widths, ranks
from compressor.methods.obs import consumers, curve
from compressor.surgery.edits import Plan, Prune


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(512, 5, generator=torch.Generator().manual_seed(1))


def least_error(hidden, outputs, kept):
    """The share of the outputs' variance that the kept channels and a constant miss, by numpy's least squares."""
    design = np.column_stack([hidden[:, kept], np.ones(len(hidden))])
    missed = outputs - design @ np.linalg.lstsq(design, outputs, rcond=None)[0]
    return float((missed**2).sum() / ((outputs - outputs.mean(0)) ** 2).sum())


def test_the_order_and_the_errors_are_those_of_trying_every_channel(net, images):
    channels = capture(net, images[:1])
    group = channels.group("0")
    found = curve(group, consumers(net, channels, [images]))
    hidden = net[1](net[0](images)).detach().double().numpy()
    outputs = net(images).detach().double().numpy()
    kept = list(range(group.size))
    for step in range(group.size - 1):
        errors = [least_error(hidden, outputs, [each for each in kept if each != gone]) for gone in kept]
        gone = kept[int(np.argmin(errors))]
        assert found.ids[step] == group.ids[gone]
        assert found.errors[step + 1] == pytest.approx(min(errors), rel=0.02, abs=2e-3)
        kept.remove(gone)


def test_what_a_width_saves_is_what_surgery_saves(net, images):
    channels = capture(net, images[:1])
    group = channels.group("0")
    gone = tuple(group.ids[:2].tolist())
    assert Plan((Prune("0", gone, "a test"),)).removed == gone
    assert Widths(channels).saved(0, 2) == channels.macs() - channels.macs(gone) == 2 * (5 + 4)


def test_channels_go_by_their_error_for_each_multiply_add(images):
    """Two groups alike but for their errors: all of the cheaper one go before any of the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
    channels = capture(model, images[:1])
    orders = {group.name: group.ids for group in channels.free}
    errors = {"0": np.array([0, 1, 2, 3.0]), "2": np.array([0, 100, 200, 300.0])}
    found = ranks(channels, orders, errors)
    assert max(found["0"][:3]) < min(found["2"][:3])
    assert np.isinf(found["0"][3]) and np.isinf(found["2"][3])
