"""Tiny networks to route through, each with its units and their multiply-adds beside its layers."""

import copy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from compressor.graph.cuts import Chain
from compressor.routing.network import Layout, Routed, survey
from compressor.routing.units import Units
from compressor.training.data import Data, open_data

SHAPE = (1, 8, 8)


class Three(nn.Sequential):
    """The paper's kind: three convolutions of one height and width, growing numbers of maps, one dense layer."""

    units = {"0": 64 * 9 * 4, "2": 64 * 9 * 4 * 6, "4": 64 * 9 * 6 * 8}  # noqa: RUF012 - a constant
    head = 8 * 64 * 10
    instead = ("(never skipped)", "2 zero channels", "2 zero channels")

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.down = nn.Identity()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.down(x)).relu()


class Residual(nn.Module):
    """A stem, a pooling that every image runs, and three residual blocks."""

    units = {  # noqa: RUF012 - a constant
        "stem": 64 * 9 * 4,
        "blocks.0": 2 * 16 * 9 * 4 * 4,
        "blocks.1": 4 * 9 * 4 * 6 + 4 * 9 * 6 * 6 + 4 * 4 * 6,
        "blocks.2": 2 * 4 * 9 * 6 * 6,
    }
    head = 6 * 10
    instead = ("(never skipped)", "identity", "average pooling, 2 zero channels", "identity")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2), Block(6, 6, 1))
        self.linear = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(self.pool(self.norm(self.stem(x)).relu())).mean((2, 3)))


class Gated(nn.Module):
    """A convolution with squeeze-and-excitation behind it, one unit; a strided one without padding; fewer maps."""

    units = {"a": 64 * 9 * 8 + 2 * 8 * 2, "b": 9 * 9 * 8 * 4}  # noqa: RUF012 - a constant
    head = 4 * 10
    instead = ("(never skipped)", "average pooling, mean of neighbouring channels")

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.linear = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.linear(self.b(x).relu().mean((2, 3)))


NETWORKS = {"three": Three, "residual": Residual, "gated": Gated}


@cache
def surveyed(kind: type[nn.Module]) -> tuple[Chain, Units]:
    return survey(kind(), SHAPE)


def routed(network: nn.Module | type[nn.Module] = Three, **layout: object) -> Routed:
    """A skipping network with a way out behind every unit, around a network or, independent of others, a kind of it."""
    shared = isinstance(network, nn.Module)
    chain, found = survey(network, SHAPE) if shared else surveyed(network)
    places = tuple(range(len(found.units)))
    chosen = {"input_shape": SHAPE, "classes": 10, "leave_after": places, **layout}
    chosen.setdefault("grids", (4,) * (len(chosen["leave_after"]) - 1))
    net = Routed(chain, found.units, Layout(**chosen))
    return net if shared else copy.deepcopy(net)


def images(count: int = 8, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def small_data(train: int = 256, held_out: int = 64) -> Data:
    """A part of the digits."""
    data = open_data("digits")
    parts = {"train": train, "validation": held_out, "test": held_out}
    return replace(data, **{name: getattr(data, name).take(torch.arange(count)) for name, count in parts.items()})
