"""What can be skipped: found on the graph, with its cost and what stands in for it."""

import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.profiling.model_profile import profile
from compressor.routing.rebuild import spread, survey
from compressor.routing.units import Unit, find_units
from tests.routing.nets import NETWORKS, SHAPE, Three


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
