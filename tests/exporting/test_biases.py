"""Biases that make up for rounded weights: on the data they were corrected on, mean outputs come out as before."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.exporting.biases import correct_biases
from compressor.exporting.quantize import SCHEMES, Chip
from tests.exporting.nets import lively

IMAGES = torch.rand(20, 8, 6, 6, generator=torch.Generator().manual_seed(0)) + 1
LAYERS: dict[str, Any] = {
    "convolution": lambda: nn.Conv2d(8, 6, 3, padding=1, stride=2),
    "without biases, normalised": lambda: nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(288, 5)),
    "of channels last": lambda: nn.Sequential(Last(), nn.Linear(8, 5, bias=False), Last()),
}


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 3)


class Twice(nn.Module):
    """A layer that runs twice, one that an image goes into, one that does more with its weights, one of its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.image, self.once = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
        self.standardised = Standardised(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.once(self.standardised(self.twice(self.twice(x)[:, :, ::2]) + self.image(x[:, :4, ::2])))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = lively(LAYERS[name]()).eval()
    return module


@torch.no_grad()
def rounded(module: nn.Module, steps: int) -> nn.Module:
    """In place, as quantizers do it."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            step = layer.weight.flatten(1).abs().amax(1).view(-1, *[1] * (layer.weight.dim() - 1)) / steps
            layer.weight.copy_((layer.weight / step).round() * step)
    return module


def means(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(IMAGES).transpose(0, 1).flatten(1).mean(1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("chip", "steps"), [(None, 127), ("x86", 127), ("x86-old", 64)])
def test_mean_outputs_survive_rounding(name: str, chip: Chip | None, steps: int) -> None:
    expected, made = means(seeded(name)), rounded(correct_biases(seeded(name), IMAGES, chip), steps)
    lost = (means(rounded(seeded(name), steps)) - expected).abs().max()
    assert (means(made) - expected).abs().max() < 0.01 * lost


def test_only_what_is_rounded_and_runs_once_is_corrected() -> None:
    torch.manual_seed(0)
    net = Twice().eval()
    made = correct_biases(net, IMAGES, "x86")
    moved = [name for name, each in made.named_parameters() if not torch.equal(each, net.get_parameter(name))]
    assert moved == ["once.bias"]


def test_a_chip_with_one_scale_for_all_channels_is_left_alone() -> None:
    assert SCHEMES["npu"].steps is None
    net = seeded("convolution")
    assert torch.equal(means(correct_biases(net, IMAGES, "npu")), means(net))
