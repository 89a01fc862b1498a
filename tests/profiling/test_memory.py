"""Peak activation memory against nets small enough to follow by hand (float32: four bytes a value)."""

import pytest
import torch
from torch import Tensor, nn

from compressor.graph.trace import trace
from compressor.profiling.memory import peak_activation_bytes


class Residual(nn.Module):
    """The input waits for two layers: three tensors live when the second one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)
        self.second = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Views(nn.Module):
    """Views cost nothing; they keep alive what they look at."""

    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        row = doubled.flatten(1).view(-1, 1, x[0].numel())[:, 0].expand(-1, -1)
        return row + 1


MAP = 2 * 4 * 4 * 4  # bytes of one feature map: two channels of 4 x 4 values


@pytest.mark.parametrize(
    ("model", "maps"),
    [
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)), 2),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)), 3),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True), nn.Flatten()), 2),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten()), 2),
        (Residual(), 3),
        (Views(), 2),
        (nn.Identity(), 1),
    ],
    ids=["chain", "wide middle", "in place", "not in place", "residual", "views", "identity"],
)
def test_the_largest_sum_of_living_tensors(model: nn.Module, maps: int) -> None:
    assert peak_activation_bytes(trace(model, torch.zeros(1, 2, 4, 4))) == maps * MAP


def test_memory_grows_with_batch_and_type() -> None:
    model = nn.Conv2d(2, 2, 1)
    assert peak_activation_bytes(trace(model, torch.zeros(5, 2, 4, 4))) == 10 * MAP
    assert peak_activation_bytes(trace(model.half(), torch.zeros(1, 2, 4, 4, dtype=torch.float16))) == MAP
