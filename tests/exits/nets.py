"""Tiny networks for the tests of detachable networks, each with its legal cut points beside it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.exits.detachable import Detachable, make_detachable
from compressor.exits.nested import Nested, make_nested
from compressor.exits.points import Survey
from compressor.exits.settings import DetachSettings


class Plain(nn.Sequential):
    """Three convolutions with batch norm, pooling, one linear layer: 3x16x16 images."""

    legal = ("3", "7")

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip


class Bare(nn.Module):
    """Without batch norm, all functions called as such, a weight without a module: what only the graph shows."""

    legal = ("conv2", "conv2d@4")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.kernel = nn.Parameter(torch.randn(5, 6, 3, 3) * 0.2)
        self.scale = nn.Parameter(torch.ones(5, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.conv1(x), 0.1)
        x = functional.leaky_relu(self.conv2(x), 0.1)
        return (functional.conv2d(x, self.kernel) * self.scale).relu().mean((2, 3))


class Block(nn.Module):
    """A residual block with a branch that no cut may enter."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Module):
    """A convolution and three residual blocks."""

    legal = ("blocks", "blocks.1", "blocks.2")

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 8, 2), Block(8, 8, 1))
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.conv(x).relu()).mean((2, 3)))


class Grouped(nn.Sequential):
    """Depthwise and grouped convolutions, whose groups follow an edit."""

    legal = ("3", "6")

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 12, 1, groups=2), nn.BatchNorm2d(12), nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
        )  # fmt: skip


class Split(nn.Module):
    """Channels that part, meet and are shuffled."""

    legal = ("branch", "last")

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Conv2d(8, 6, 3, stride=2)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        x = x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.classifier(self.last(x).relu().mean((2, 3)))


CONVOLUTIONAL = {"plain": Plain, "bare": Bare, "residual": Residual, "grouped": Grouped, "split": Split}
SHAPE = (3, 16, 16)


def perceptron(width: int = 12, layers: int = 2, classes: int = 5) -> nn.Sequential:
    """A perceptron of 1x3x4 images whose hidden layers are as wide as the input."""
    hidden = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


FLAT = (1, 3, 4)


def images(shape: tuple[int, ...] = SHAPE, count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def detachable(base: nn.Module | None = None, bn: str = "stats", at: tuple[str, ...] = ()) -> Detachable:
    """A network with a sub-model at each legal point, or at the given ones."""
    found = Survey(base or Plain(), SHAPE)
    return make_detachable(found, {p.at: p.plan for p in found.points if not at or p.at in at}, bn)


def nested(base: nn.Module | None = None, shape: tuple[int, ...] = FLAT, **settings: object) -> Nested:
    return make_nested(Survey(base or perceptron(), shape), DetachSettings(method="nsn", **settings))


def storages(module: nn.Module) -> Iterator[int]:
    """Bytes of every piece of memory that the module's tensors take, each piece once."""
    seen = {}
    for tensor in (*module.parameters(), *module.buffers()):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    yield from seen.values()
