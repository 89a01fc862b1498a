"""Sizes that an exported graph holds as numbers follow an edit."""

import pytest
import torch
from torch import Tensor, nn

from tests.graph.test_program import check


class Parts(nn.Module):
    """Cuts its channels into parts of equal size, by a number."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.a, self.b = way, nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.way == "split":
            parts: tuple[Tensor, ...] = x.split(4, 1)
        elif self.way == "sizes":
            parts = x.split([4, 4, 4], 1)
        elif self.way == "unflatten":
            parts = x.unflatten(1, (3, 4)).unbind(1)
        else:
            parts = x.view(len(x), 3, 4, *x.shape[2:]).unbind(1)
        one, two, three = parts
        scores: Tensor = self.head(self.b((one * two + three).relu()).mean((2, 3)))
        return scores


@pytest.mark.parametrize("way", ["split", "sizes", "unflatten", "view"])
def test_parts_of_equal_size_stay_equal(way: str) -> None:
    check(Parts(way).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64))
