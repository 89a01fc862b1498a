"""Sizes that a class keeps for later follow the channels that they count, or are named."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor import vision  # noqa: F401 - timm looks for torchvision
from compressor.graph import capture
from compressor.surgery import operate_
from compressor.surgery.structure import apply_, describe
from tests.equivalence import half_plan
from tests.networks import conv


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_chs, self.dilation, self.stride = inputs, outputs, 8, 8
        self.first, self.second, self.width = conv(inputs, 6), conv(6, outputs), 6

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


class Backbone(nn.Module):
    """Transfer learning asks for `num_features`; two stages have one width."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size, self.in_chans, self.num_classes = 8, 3, 4
        self.a, self.b, self.head = Block(3, 8), Block(8, 8), nn.Linear(8, 4)
        self.num_features, self.widths, self.channels, self._features = 8, [8, 8], [8], 8

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).mean((2, 3)))

    def reset_classifier(self, classes: int) -> None:
        self.head = nn.Linear(self.num_features, classes)


def pruned() -> Backbone:
    torch.manual_seed(0)
    model, x = Backbone(), torch.randn(2, 3, 8, 8)
    channels = capture(model, x)
    operate_(model, half_plan(channels, share=0.3), channels)
    operate_(model, half_plan(channels := capture(model, x), seed=2), channels)
    return model


def test_sizes_for_later_follow() -> None:
    model = pruned()
    assert model.num_features == model.b.second.out_channels == model.b.out_chs == model.head.in_features < 8
    assert (model.a.out_chs, model.b.in_channels) == (model.a.second.out_channels, model.b.first.in_channels)
    assert model.a.width == model.a.first.out_channels and model.b.width == model.b.first.out_channels
    model.reset_classifier(5)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_other_numbers_stay_and_unclear_ones_are_named() -> None:
    model = pruned()
    assert (model.img_size, model.in_chans, model.num_classes, model.a.dilation, model.a.in_channels) == (8, 3, 4, 8, 3)
    assert (model.widths, model.channels, model._features) == ([8, 8], [8], 8)
    [note] = capture(Backbone(), torch.randn(2, 3, 8, 8)).notes
    assert note == "kept as they are, since several layers have their width: widths.0, widths.1, channels.0"


def test_sizes_for_later_stand_in_checkpoints() -> None:
    model, fresh = pruned(), Backbone()
    apply_(fresh, describe(Backbone(), model))
    assert (fresh.num_features, fresh.a.out_chs) == (model.num_features, model.a.out_chs)


class Misnamed(nn.Module):
    """`embed` decides whether a branch runs: another value of it is another network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.embed = conv(3, 8), nn.Linear(8, 4), 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head((x.relu() if self.embed == 8 else x).mean((2, 3)))


def test_a_number_to_which_a_trial_objects_stays() -> None:
    model, x = Misnamed(), torch.randn(2, 3, 8, 8)
    channels = capture(model, x)
    assert [group.name for group in channels.free] == ["a"]
    operate_(model, half_plan(channels), channels)
    assert model.embed == 8


@pytest.mark.parametrize("name", ["test_byobnet", "test_convnext", "resnet10t", "mobilenetv3_small_050", "repvgg_a0"])
def test_new_classifiers_fit_networks_of_timm(name: str) -> None:
    import timm

    model, x = timm.create_model(name, num_classes=10).eval(), torch.zeros(1, 3, 64, 64)
    channels = capture(model, x)
    operate_(model, half_plan(channels), channels)
    model.reset_classifier(5)
    assert model(x).shape == (1, 5)
