"""What readers lose with a channel that is constant in space is made up for exactly, whatever reads it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from compressor.graph import capture
from compressor.surgery import Plan, Prune, operate_

MEANS = {1: 0.7, 3: -1.3, 4: 2.0}  # channel -> what it gives everywhere


def flattened() -> list[nn.Module]:
    """Every channel has four columns, each column a weight of its own."""
    return [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 4, 6), nn.ReLU(), nn.Linear(6, 2)]


def pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)]


def convolved() -> list[nn.Module]:
    """Columns are kernels of 3x3."""
    return [nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)]


def without_bias() -> list[nn.Module]:
    """The running mean of the norm behind takes the shift."""
    return [nn.Conv2d(5, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)]


def linear_without_bias() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(5 * 16, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)]


@pytest.mark.parametrize("readers", [flattened, pooled, convolved, without_bias, linear_without_bias])
def test_channels_that_are_constant_are_not_missed(readers: Callable[[], list[nn.Module]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), *readers()).double().eval()
    with torch.no_grad():
        for channel, mean in MEANS.items():
            model[0].weight[channel], model[0].bias[channel] = 0, mean
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    channels = capture(model, x)
    ids = channels.group("0").ids.tolist()
    before, gone = model(x), tuple(ids[channel] for channel in MEANS)
    operate_(model, Plan((Prune("0", gone, "constant", means=tuple(MEANS.values())),)), channels)
    assert model[0].out_channels == 2
    torch.testing.assert_close(model(x), before)


def test_readers_with_nothing_to_take_the_shift_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    channels = capture(model, torch.zeros(1, 3, 4, 4))
    kept = model[1].weight.detach()[:, 1:].clone()
    operate_(model, Plan((Prune("0", (int(channels.group("0").ids[0]),), "first", means=(2.0,)),)), channels)
    assert torch.equal(model[1].weight, kept)
