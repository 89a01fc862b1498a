"""What can be skipped: found on the graph, with its cost and what stands in for it."""

import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.graph.cuts import Chain
from compressor.graph.shortcuts import own_shortcut
from compressor.profiling.costs import profile
from compressor.routing.network import spread, survey
from compressor.routing.units import (
    ExitHead,
    Shortcut,
    Skippable,
    Unit,
    _grid,
    find_units,
    head_side,
    shortcut_fits,
)
from tests.routing.nets import NETWORKS, SHAPE, Block, Three


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_units_are_named_and_counted(network):
    _, found = survey(network(), SHAPE)
    assert {unit.name: unit.macs for unit in found.units} == network.units
    assert tuple(unit.instead for unit in found.units) == network.instead
    assert [unit.index for unit in found.units] == list(range(len(found.units)))
    assert not found.refused


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_units_and_head_make_up_the_whole_cost(network):
    model = network()
    whole = profile(model, torch.zeros(1, *SHAPE), layers=False).macs
    assert sum(network.units.values()) + network.head == whole


def test_classifier_is_never_a_unit():
    """SqueezeNet's kind: the last convolution makes the scores."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    assert [unit.name for unit in survey(model, SHAPE)[1].units] == ["0", "2"]


def bilinear(classes: int) -> nn.Module:
    return nn.ConvTranspose2d(classes, classes, 4, 2, 1, groups=classes, bias=False)


TAILS = {
    "bilinear": lambda: [nn.Upsample(scale_factor=2.0, mode="bilinear"), Function(lambda x: x.mean((2, 3)))],
    "nearest": lambda: [nn.Upsample(scale_factor=2.0), nn.Flatten(2), Function(lambda x: x.amax(2))],
    "transposed convolution": lambda: [bilinear(10), Function(lambda x: x.mean((2, 3)))],
    "softmax": lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)],
    "log_softmax": lambda: [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.LogSoftmax(1)],
    "view": lambda: [Function(lambda x: x.view(x.shape[0], 10, -1).mean(2))],
    "permute": lambda: [Function(lambda x: x.permute(0, 2, 3, 1).flatten(1, 2).mean(1))],
    "scale": lambda: [nn.Dropout(), nn.AvgPool2d(8), nn.Flatten(), Function(lambda x: x.sigmoid() * 2 - 1)],
    "padding and pooling": lambda: [nn.ReflectionPad2d(1), nn.MaxPool2d(10), nn.Flatten()],
    "pixels of each class": lambda: [nn.Upsample(scale_factor=2.0, mode="bicubic")],
}


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", TAILS)
def test_the_layer_that_makes_the_scores_is_no_unit_whatever_comes_behind(name):
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 10, 1)]
    found = survey(nn.Sequential(*layers, *TAILS[name]()), SHAPE)[1]
    assert [unit.name for unit in found.units] == ["0", "2"] and not found.refused


def test_resizing_is_no_layer_and_depthwise_convolutions_elsewhere_are():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Upsample(scale_factor=0.5, mode="bilinear"), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip
    assert [unit.name for unit in survey(model, SHAPE)[1].units] == ["0", "3"]


def test_growing_maps_are_refused_with_the_reason():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip
    found = survey(model, SHAPE)[1]
    assert [unit.name for unit in found.units] == ["0", "3"]
    assert found.refused == {"2": "its maps of 4x8x8 become 4x16x16, for which there is no plain shortcut"}


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
        nn.Sequential(nn.Flatten(), nn.ReLU()),
    ],
    ids=["perceptron", "one layer", "no weights"],
)
def test_network_with_nothing_to_skip_is_refused_in_one_line(model):
    with pytest.raises(ModelError, match="nothing to skip") as error:
        survey(model, SHAPE)
    assert "\n" not in str(error.value)


def test_finding_leaves_the_model_alone():
    model = Three().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chain, _ = survey(model, SHAPE)
    find_units(chain)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def units(*macs: int) -> tuple[Unit, ...]:
    return tuple(Unit(i, str(i), "layer", i, i + 1, SHAPE, SHAPE, each, "identity") for i, each in enumerate(macs))


@pytest.mark.parametrize(
    ("macs", "depths", "expected"),
    [
        ((1, 5, 9), 4, (0, 1, 2)),
        ((10,) * 8, 4, (1, 3, 5, 7)),
        ((1, 1, 98), 2, (1, 2)),
        ((90, 5, 2, 3), 3, (0, 3)),
    ],
    ids=["fewer units", "even", "most at the end", "most at the beginning"],
)
def test_depths_are_spread_over_the_macs(macs, depths, expected):
    assert spread(units(*macs), depths) == expected


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
    return Skippable(body, chain.cuts[0].shape, chain.cuts[-1].shape)


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
