"""A tiny network and a tiny data set that the tests of this room share."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.training.data import Data, open_data
from compressor.training.loop import plain
from compressor.training.microbatches import Step


def small_net(classes: int = 10, seed: int = 0, dropout: float = 0.1, channels: int = 1) -> nn.Sequential:
    """Conv, batch-norm, dropout, linear: one of everything that a checkpoint must carry."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )


class Viewing(nn.Module):
    """Reads its maps with `view`, as the first network of many a course does: they must lie channel by channel."""

    def __init__(self, in_training_only: bool = False) -> None:
        super().__init__()
        self.in_training_only = in_training_only
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.linear = nn.Linear(6 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu()
        flat = maps.flatten(1) if self.in_training_only and not self.training else maps.view(-1, 6 * 8 * 8)
        scores: Tensor = self.linear(flat)
        return scores


def small_data(train: int = 96, held_out: int = 32) -> Data:
    """A part of the digits."""
    data = open_data("digits")
    return replace(
        data,
        train=data.train.take(torch.arange(train)),
        validation=data.validation.take(torch.arange(held_out)),
        test=data.test.take(torch.arange(held_out)),
    )


def cross_entropy(smoothing: float = 0.0) -> Step:
    """The step of plain training."""
    return plain(small_data(), smoothing)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Two state dicts are equal bit for bit."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
