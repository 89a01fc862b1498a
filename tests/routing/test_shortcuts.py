"""What stands in for a skipped unit: the right shape, and values against loops."""

import pytest
import torch
from torch import nn

from compressor.graph.cuts import Chain
from compressor.graph.shortcuts import own_shortcut
from compressor.routing.shortcuts import (
    Adapter,
    ExitHead,
    Shortcut,
    Skippable,
    _grid,
    head_side,
    shortcut_fits,
)
from tests.routing.nets import Block

SHAPES = {
    "same": ((4, 8, 8), (4, 8, 8)),
    "more channels": ((4, 8, 8), (7, 8, 8)),
    "fewer channels": ((6, 8, 8), (3, 8, 8)),
    "fewer, not dividing": ((6, 8, 8), (4, 8, 8)),
    "half the maps": ((4, 8, 8), (4, 4, 4)),
    "odd maps, rounded up": ((4, 7, 7), (4, 4, 4)),
    "odd maps, rounded down": ((4, 7, 7), (4, 3, 3)),
    "no padding": ((4, 8, 8), (4, 6, 6)),
    "rounded up, and no padding": ((4, 9, 8), (4, 5, 6)),
    "all at once": ((4, 9, 8), (5, 5, 4)),
}


@pytest.mark.parametrize(("before", "after"), SHAPES.values(), ids=SHAPES)
def test_output_has_the_units_shape_whatever_the_way_around(before, after):
    x = torch.randn(2, *before)
    assert Shortcut(before, after)(x).shape == (2, *after)
    assert Adapter(before, after)(x).shape == (2, *after)
    assert all(ExitHead(before, 5, side)(x).shape == (2, 5) for side in (4, 2, 1))


@pytest.mark.parametrize(("most", "side"), [(6400, 8), (6399, 4), (1600, 4), (1599, 2), (400, 2), (399, 1), (0, 1)])
def test_heads_grid_is_the_finest_that_is_cheap_enough(most, side):
    _, (rows, columns) = _grid((10, 8, 8), head_side((10, 8, 8), 10, most))
    assert (rows, columns) == (side, side)


def test_same_shape_is_the_identity():
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(Shortcut((4, 8, 8), (4, 8, 8))(x), x)


def test_maps_are_averaged_over_the_stride_and_missing_channels_are_zero():
    x = torch.randn(2, 3, 8, 8)
    y = Shortcut((3, 8, 8), (5, 4, 4))(x)
    for row in range(4):
        for column in range(4):
            window = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
            torch.testing.assert_close(y[:, :3, row, column], window)
    assert not y[:, 3:].any()


def test_superfluous_channels_are_averaged_with_their_neighbours():
    x = torch.randn(2, 6, 4, 4)
    y = Shortcut((6, 4, 4), (3, 4, 4))(x)
    for channel in range(3):
        torch.testing.assert_close(y[:, channel], x[:, 2 * channel : 2 * channel + 2].mean(1))


def test_borders_of_odd_maps_are_averaged_over_what_is_there():
    x, parts = torch.randn(1, 1, 3, 3), (slice(0, 2), slice(2, 3))
    y = Shortcut((1, 3, 3), (1, 2, 2))(x)
    for row, high in enumerate(parts):
        for column, wide in enumerate(parts):
            torch.testing.assert_close(y[:, :, row, column], x[:, :, high, wide].mean((2, 3)))


@pytest.mark.parametrize(
    ("before", "after", "fits"),
    [
        ((4, 8, 8), (9, 8, 8), True),
        ((4, 8, 8), (4, 16, 16), False),
        ((64, 12), (64, 12), True),
        ((4, 8, 8), (9,), False),
    ],
)
def test_which_shapes_have_a_shortcut(before, after, fits):
    assert shortcut_fits(before, after) is fits


def block(module: nn.Module, shape: tuple[int, ...]) -> Skippable:
    chain = Chain(module, torch.zeros(1, *shape))
    body = chain.segment(0, len(chain.cuts) - 1)
    return Skippable(body, chain.cuts[0].shape, chain.cuts[-1].shape, adapter=False)


def test_residual_block_leaves_its_identity():
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(Block(4, 4, 1), (4, 8, 8)).skip(x), x.relu())


class Projected(nn.Module):
    """A block whose shortcut path is a convolution, without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.down = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(4, 6, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()) + self.down(x)


def test_projected_shortcut_runs_on_the_blocks_own_weights():
    model, x = Projected(), torch.randn(2, 4, 8, 8)
    unit = block(model, (4, 8, 8))
    torch.testing.assert_close(unit.skip(x), model.down(x))
    assert sum(value is model.down.weight for value in unit.parameters()) == 1
    unit.skip(x).sum().backward()
    assert model.down.weight.grad is not None
    assert model.first.weight.grad is None


def test_shortcut_path_with_batch_norm_is_not_taken():
    """Maps of a shallower depth have other statistics than the ones that its running averages hold."""
    chain = Chain(Block(4, 6, 2), torch.zeros(1, 4, 8, 8))
    assert own_shortcut(chain.segment(0, len(chain.cuts) - 1)) is None


class Adding(nn.Module):
    """Adds something to what it is given."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.conv, self.shift, self.other = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(4, 1, 1)), other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y + {"input": x, "weight": self.shift, "number": 1.0}[self.other]


@pytest.mark.parametrize(("other", "residual"), [("input", True), ("weight", False), ("number", False)])
def test_only_a_sum_of_two_feature_maps_has_a_shortcut(other, residual):
    chain = Chain(Adding(other), torch.zeros(1, 4, 8, 8))
    assert (own_shortcut(chain.segment(0, len(chain.cuts) - 1)) is not None) is residual
