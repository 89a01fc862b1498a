"""Networks that were made of networks: saved, opened again, edited before and after, damaged."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compressor.errors import FileError, UsageError
from compressor.exits.detachable import make_detachable
from compressor.exits.points import Survey
from compressor.graph import capture
from compressor.loading.opening import OpenedModel
from compressor.runs.models import open_model, save_model, transformed
from compressor.surgery import operate_
from tests.equivalence import half_plan
from tests.exits.nets import SHAPE, Plain, images
from tests.loading.checkpoints import change, header_of

NETWORK = f"{Path(__file__).parents[1] / 'exits' / 'nets.py'}:Plain"


@pytest.fixture
def opened(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return open_model(None, arch=NETWORK, input_shape=SHAPE)


def detached(opened: OpenedModel) -> OpenedModel:
    found = Survey(opened.module, SHAPE)
    model = make_detachable(found, {point.at: point.plan for point in found.points}, "stats")
    return transformed(opened, model.eval(), model.step())


def halve_(opened: OpenedModel) -> None:
    channels = capture(opened.module, images())
    operate_(opened.module, half_plan(channels), channels)


def test_prune_detach_prune_survives(opened, tmp_path):
    halve_(opened)
    model = detached(opened)
    halve_(model)
    save_model(model, tmp_path / "model.safetensors")
    again = open_model(tmp_path / "model.safetensors")
    assert [step["kind"] for step in again.steps] == ["structure", "detach"]
    for exit in range(3):
        torch.testing.assert_close(again.module(images(), exit=exit), model.module(images(), exit=exit))
    save_model(again, tmp_path / "again.pt")
    first, second = ((tmp_path / name).stat().st_size for name in ("model.safetensors", "again.pt"))
    assert second == pytest.approx(first, rel=0.01)


def test_every_tensor_is_in_the_file_once(opened, tmp_path):
    model = detached(opened)
    save_model(model, tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    assert sum(v.numel() for k, v in state.items() if "running" not in k and "tracked" not in k) == parameters


def test_without_an_architecture_nothing_can_be_made_of_somebodys_class():
    found = Survey(Plain(), SHAPE)
    model = make_detachable(found, {found.points[0].at: found.points[0].plan}, "stats")
    with pytest.raises(UsageError, match="`arch`"):
        transformed(OpenedModel(found.base), model, model.step())


def test_network_of_published_layers_needs_no_architecture(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    network[1].register_buffer("scale", torch.ones(8), persistent=False)
    opened = OpenedModel(network.eval(), input_shape=SHAPE)
    halve_(opened)
    model = detached(opened)
    halve_(model)
    network[1].scale.fill_(2)
    save_model(model, tmp_path / "model.safetensors")
    again = open_model(tmp_path / "model.safetensors")
    for exit in range(model.module.exits + 1):
        torch.testing.assert_close(again.module(images(), exit=exit), model.module(images(), exit=exit))
    assert torch.equal(again.module.base[1].scale, network[1].scale)
    save_model(again, tmp_path / "again.safetensors")
    assert header_of(tmp_path / "again.safetensors") == header_of(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: {**step, "kind": "os.system"},
        lambda step: {**step, "kind": ["detach"]},
        lambda step: {**step, "input_shape": [3, 10**5, 10**5]},
        lambda step: {**step, "exits": [{**step["exits"][0], "step_down": {**step["exits"][0]["step_down"], **WIDE}}]},
        lambda step: {**step, "exits": 3},
        lambda step: "detach",
    ],
)
def test_damaged_steps_are_one_line(opened, tmp_path, damage):
    save_model(detached(opened), tmp_path / "model.safetensors")
    change(tmp_path / "model.safetensors", lambda header, _: header.update(steps=[damage(header["steps"][0])]))
    with pytest.raises(FileError) as caught:
        open_model(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


WIDE = {"out_channels": 2**40}
