"""Small networks for the methods: their groups are known by reading them."""

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Two convolutions with batch norm, then a linear layer: groups `one` (8 channels) and `two` (6)."""

    example = torch.zeros(2, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.norm_two = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_one(self.one(x)).relu()
        x = self.norm_two(self.two(x)).relu()
        return self.out(x.mean((2, 3)))


class Residual(nn.Module):
    """`stem` and `back` meet in an addition (8 channels); `inner` stands alone (12), without batch norm behind it."""

    example = torch.zeros(2, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.back = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.out = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.inner(x).relu())
        return self.out(nn.functional.max_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    """A grouped convolution ties the same position of its four groups: 16 filters are 4 channels of `first`."""

    example = torch.zeros(2, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.last = nn.Conv2d(16, 8, 1)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.grouped(self.first(x).relu()).relu()).relu().mean((2, 3)))


NETS: dict[str, type[nn.Module]] = {"plain": Plain, "residual": Residual, "grouped": Grouped}


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Random images and labels for any of the networks."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, 4, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (count, 4), generator=generator)
    return list(zip(images, labels, strict=True))
