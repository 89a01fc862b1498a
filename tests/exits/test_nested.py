"""Nested networks: sizes of the paper, one copy of every weight, the runs of layers that can come off."""

import copy

import pytest
import torch
from torch import nn

from compressor.errors import FileError, ModelError, UsageError
from compressor.exits.nested import find_run, make_nested, rebuild
from compressor.exits.points import Survey
from compressor.exits.settings import DetachSettings
from compressor.graph import capture
from sample_models import mlp
from tests.exits.nets import FLAT, SHAPE, Plain, Residual, images, nested, perceptron, storages


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_models_have_the_papers_parameters():
    model = make_nested(Survey(mlp.build(), mlp.INPUT_SHAPE), DetachSettings(method="nsn"))
    assert [count(model.detach(exit)) for exit in (0, 1, 2)] == [1_238_730, 623_290, 7_850]


def test_a_smaller_model_is_the_larger_one_without_its_input_layer():
    model = nested(perceptron(layers=3))
    base = model.base
    x = images(FLAT)
    for exit in range(4):
        by_hand = nn.Sequential(nn.Flatten(), *list(base)[1 + 2 * exit :])
        torch.testing.assert_close(model.eval()(x, exit=exit), by_hand(x))
        if exit < 3:
            larger, smaller = ([p.data_ptr() for p in model.detach(k).parameters()] for k in (exit, exit + 1))
            assert larger[2:] == smaller
    torch.testing.assert_close(model(x), base(x))


def test_weights_are_stored_once():
    model = nested()
    assert list(model.state_dict()) == [f"base.{name}" for name in model.base.state_dict()]
    assert sum(storages(model)) == sum(storages(perceptron()))


def test_dropout_keeps_what_the_settings_say_and_spares_the_smallest():
    model = nested(keep_input=0.75, keep_hidden=0.25).train()
    stacks = list(model.stacks)
    assert [(s.input_dropout.p, s.hidden_dropout.p) for s in stacks[:2]] == [(0.25, 0.75)] * 2
    x = images(FLAT)
    torch.testing.assert_close(model(x, exit=2), model.base[5](x.flatten(1)))
    assert not torch.equal(model(x, exit=0), model(x, exit=0))


def test_a_networks_own_dropout_is_the_only_one():
    base = perceptron()
    base.insert(2, nn.Dropout(0.5))
    assert all(stack.input_dropout.p == 0 for stack in list(nested(base).stacks)[:2])


def test_fewer_exits_than_layers():
    model = nested(perceptron(layers=3), exits=2)
    assert model.exits == 2 and model.at == ("3", "5")


@pytest.mark.parametrize("wrong", [{"at": ("1", "3")}, {"targets": (0.5,)}])
def test_layers_come_off_one_by_one_not_by_place_or_cost(wrong):
    with pytest.raises(UsageError, match="one by one"):
        make_nested(Survey(perceptron(layers=3), FLAT), DetachSettings(method="nsn", **wrong))


def test_runs_of_blocks_in_a_convolutional_network():
    found = Survey(Residual(), SHAPE)
    run = find_run(found, "blocks")
    assert (run.layers, run.shape) == (1, (4, 16, 16)) and find_run(found, "blocks.0") == run
    model = make_nested(found, DetachSettings(method="nsn", at=("blocks",)))
    x = images()
    by_hand = model.base.blocks[2](model.base.blocks[1](model.base.eval().conv(x).relu()))
    torch.testing.assert_close(model.eval()(x, exit=1), model.base.classifier(by_hand.mean((2, 3))))
    assert model.stacks[0].input_dropout.p == 0
    own, shared = model.stacks[1].rest, model.base.blocks[1]
    assert own.get_submodule("blocks.1.norm1") is not shared.norm1
    assert own.get_submodule("blocks.1.norm1").weight is shared.norm1.weight


def test_rebuilt_from_plain_data():
    for base, shape, settings in ((perceptron, FLAT, {"exits": 1}), (Residual, SHAPE, {"at": ("blocks",)})):
        model = nested(base(), shape, **settings)
        fresh = rebuild(base(), model.step())
        fresh.load_state_dict(model.state_dict())
        for exit in range(model.exits + 1):
            x = images(shape)
            torch.testing.assert_close(fresh.eval()(x, exit=exit), model.eval()(x, exit=exit))


@pytest.mark.parametrize("broken", [{"at": ["1"]}, {"layers": 5}, {"keep": [2, 1]}, {"at": ["nowhere", "3"]}])
def test_damaged_entry_is_a_file_error(broken):
    with pytest.raises(FileError, match="do not fit"):
        rebuild(perceptron(), {**nested().step(), **broken})


def test_channels_of_a_nested_network_are_frozen_by_its_input():
    model = nested()
    channels = capture(model, images(FLAT))
    assert not channels.free and channels.frozen


def test_copies_share_too():
    other = copy.deepcopy(nested())
    assert [name for name, _ in other.named_parameters()] == [f"base.{n}" for n, _ in other.base.named_parameters()]


@pytest.mark.parametrize(
    ("base", "shape", "settings", "error", "message"),
    [
        (Plain, SHAPE, {}, ModelError, "has convolutions.*`method` cnsn"),
        (lambda: perceptron(width=12, layers=0), FLAT, {}, ModelError, "no hidden layer as wide as its input"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)), FLAT, {}, ModelError, "12"),
        (perceptron, FLAT, {"exits": 3}, UsageError, "3 exits were asked for, and 2 hidden layers"),
        (perceptron, FLAT, {"targets": (0.5,)}, UsageError, "one by one"),
        (perceptron, FLAT, {"keep_input": 0.0}, UsageError, "probability"),
        (Residual, SHAPE, {"at": ("blocks.0.conv2",)}, UsageError, "no layer begins at 'blocks.0.conv2'"),
        (Residual, SHAPE, {"at": ("conv",)}, ModelError, "another shape than it takes"),
    ],
)
def test_impossible_wishes_are_one_clear_line(base, shape, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        nested(base(), shape, **settings)
    assert "\n" not in str(caught.value)
