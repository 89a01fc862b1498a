"""Sizes that a class keeps for later follow the channels that they count, or are named."""

import collections
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import pydantic
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.graph import capture
from compressor.surgery import operate_
from compressor.surgery.structure import apply_, describe
from compressor.vision import door as vision  # noqa: F401 - timm looks for torchvision
from tests.equivalence import half_plan
from tests.networks import conv


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_chs, self.dilation, self.stride = inputs, outputs, 8, 8
        self.first, self.second, self.width = conv(inputs, 6), conv(6, outputs), 6
        self.options = SimpleNamespace(hidden={"dims": (6, 100)}, stride=6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


SHARED = {"embed_dim": 8, "num_classes": 8}


class Backbone(nn.Module):
    """Transfer learning asks for `num_features`; two stages have one width."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size, self.in_chans, self.num_classes = 8, 3, 4
        self.a, self.b, self.head = Block(3, 8), Block(8, 8), nn.Linear(8, 4)
        self.num_features, self.widths, self.channels, self._features, self._rate = 8, [8, 8], [8], 8, 8
        self.feature_info = [{"module": name, "num_chs": 8, "reduction": 8} for name in "ab"]
        self.cfg = SHARED

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
    assert [info["num_chs"] for info in model.feature_info] == [model.a.out_chs, model.b.out_chs]
    assert model.cfg["embed_dim"] == model._features == model.num_features
    assert model.a.options.hidden["dims"][0] == model.a.width and model.b.options.hidden["dims"][0] == model.b.width
    model.reset_classifier(5)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_other_numbers_stay_and_unclear_ones_are_named() -> None:
    model = pruned()
    assert (model.img_size, model.in_chans, model.num_classes, model.a.dilation, model.a.in_channels) == (8, 3, 4, 8, 3)
    assert (model.widths, model.channels, model._rate, model.a.options.stride) == ([8, 8], [8], 8, 6)
    assert [info["reduction"] for info in model.feature_info] == [8, 8] and model.cfg["num_classes"] == 8
    assert SHARED == {"embed_dim": 8, "num_classes": 8}, "others may hold it too"
    [note] = capture(Backbone(), torch.randn(2, 3, 8, 8)).notes
    assert note == "kept as they are, since several layers have their width: widths.0, widths.1, channels.0"


def test_sizes_for_later_stand_in_checkpoints() -> None:
    model, fresh = pruned(), Backbone()
    apply_(fresh, describe(Backbone(), model))
    assert (fresh.num_features, fresh.a.out_chs) == (model.num_features, model.a.out_chs)
    assert (fresh.feature_info, fresh.cfg, fresh._features) == (model.feature_info, model.cfg, model._features)
    assert fresh.a.options == model.a.options and SHARED["embed_dim"] == 8


def test_what_a_run_leaves_behind_is_no_size() -> None:
    fresh, edited = Backbone(), Backbone()
    edited._rate, edited.cfg = 3, SHARED | {"num_classes": 3}
    assert describe(fresh, edited)["attributes"] == {}
    edited.img_size = 3
    assert describe(fresh, edited)["attributes"] == {"": {"img_size": 3}}


def test_norms_without_weights_keep_their_number() -> None:
    norms = nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.InstanceNorm2d(8, track_running_stats=True)
    model, x = nn.Sequential(conv(3, 8), *norms, conv(8, 4)), torch.randn(2, 3, 8, 8)
    channels = capture(model, x)
    operate_(model, half_plan(channels), channels)
    assert {norm.num_features for norm in norms} == {model[0].out_channels} == {4}
    model.train()(x)


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
    widths: dict[str, int] = {}
    for info in model.feature_info:
        named = model.get_submodule(info["module"])
        named.register_forward_hook(lambda _, __, y, name=info["module"]: widths.update({name: y.shape[1]}))
    assert model(x).shape == (1, 5)
    assert widths == {info["module"]: info["num_chs"] for info in model.feature_info}


@dataclass
class Options:
    hidden_size: int = 8
    num_hidden_layers: int = 8


@dataclass(frozen=True, slots=True)
class Fixed:
    hidden_size: int = 8


class Named(NamedTuple):
    hidden_size: int = 8
    num_hidden_layers: int = 8


class Attributes(dict):
    __getattr__ = dict.__getitem__


class Renaming:
    """As configurations of transformers: one name stands for another."""

    def __init__(self) -> None:
        self.width = 8

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__({"width": "hidden_size"}.get(name, name), value)


class Strict(pydantic.BaseModel, frozen=True):
    hidden_size: int = 8


@dataclass
class Nested:
    encoder: Fixed = field(default_factory=Fixed)

    @property
    def hidden_size(self) -> int:
        return self.encoder.hidden_size


class Refusing(Options):
    def __copy__(self) -> Any:
        raise TypeError


OPTIONS = {
    **{kind.__name__: kind for kind in (Options, Fixed, Named, Renaming, Strict, Nested)},
    "Attributes": lambda: Attributes(hidden_size=8),
    "UserDict": lambda: collections.UserDict(hidden_size=8),
}


class Part(nn.Module):
    def __init__(self, config: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.config, self.layers = config, nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def configured(config: Any, *between: nn.Module) -> Part:
    """A network whose modules share one object."""
    return Part(config, Part(config, conv(3, 8)), nn.ReLU(), *between, Part(config, conv(8, 4)))


@pytest.mark.parametrize("kind", OPTIONS)
def test_sizes_in_objects_follow_in_one_copy_for_all(kind: str) -> None:
    config = OPTIONS[kind]()
    model = configured(config)
    channels = capture(model, torch.randn(1, 3, 8, 8))
    operate_(model, half_plan(channels), channels)
    width = model.layers[0].layers[0].out_channels
    size = (lambda c: c["hidden_size"]) if isinstance(config, dict | collections.UserDict) else lambda c: c.hidden_size
    assert width < 8 and size(model.config) == width and size(config) == 8
    assert model.config is model.layers[0].config is model.layers[2].config
    assert kind not in ("Options", "Named") or model.config.num_hidden_layers == 8


def test_sizes_in_objects_that_cannot_follow_are_named() -> None:
    x = torch.randn(1, 3, 8, 8)
    refused = capture(configured(Refusing()), x)
    assert refused.notes == ("kept as they are, since their objects refuse changes: config.hidden_size",)
    image = Options(hidden_size=3)  # as many as the image has, and as the kernels are wide
    assert not capture(configured(image), x).notes
    unclear = capture(configured(Options(), Part(None, conv(8, 8)), nn.ReLU()), x)  # its first and last part disagree
    assert unclear.notes == ("kept as they are, since several layers have their width: config.hidden_size",)
