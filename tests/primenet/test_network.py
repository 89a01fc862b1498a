"""The network as a module: holding parts of it still, and building it again from what a checkpoint says."""

import json

import pytest
import torch
from torch.nn import functional as F

from compressor.errors import FileError
from compressor.primenet.network import PrimeNetwork
from compressor.primenet.place import Early, rebuild
from compressor.primenet.settings import PrimeNetSettings
from tests.primenet.nets import CLASSES, IMAGE, Residual, batch, network, plain


def test_only_the_named_parts_change():
    net = network()
    net.stage.block.settle_((3,))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with net.only((net.rest,)):
        net.train()
        optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), 0.1, weight_decay=0.1)
        x, y = batch()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("rest.") for name in changed)
    assert "rest.0.running_mean" in changed
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.train().modules())


@pytest.mark.parametrize("kept", [(5,), (3, 5, 7), None], ids=["static", "entropy", "learning"])
@pytest.mark.parametrize("fit", ["pool", "stride"])
def test_a_step_of_plain_data_builds_the_same_network_again(kept, fit):
    base = plain()
    early = Early(base, IMAGE, CLASSES, PrimeNetSettings(reduced=3, fit=fit))
    net = early.replaced(early.find("5")).eval()
    if kept is not None:
        net.stage.block.settle_(kept)
    step = json.loads(json.dumps(net.step()))
    again = rebuild(plain(), step).eval()
    assert isinstance(again, PrimeNetwork)
    again.load_state_dict(net.state_dict())
    x, _ = batch()
    assert torch.equal(again(x), net(x))
    assert again.step() == net.step()


def test_a_network_built_with_its_stage_only_settles():
    net = network().eval()
    net.stage.block.settle_((7,))
    again = rebuild(network(), net.step()).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(batch()[0]), net(batch()[0])) or again.stage.block.scales == (7,)
    assert rebuild(again, net.step()) is again


def test_a_stage_that_ends_outside_any_module_is_found_by_its_number():
    early = Early(Residual().eval(), IMAGE, CLASSES, PrimeNetSettings(reduced=3))
    net = early.replaced(early.places[1].cut)
    again = rebuild(Residual().eval(), net.step())
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in net.state_dict().items()
    }


@pytest.mark.parametrize(
    "broken",
    [
        {"scales": [9]},
        {"scales": "x"},
        {"origin": {}},
        {"origin": None},
        {"shape": [16, 5, 5]},
        {"until": "nothing"},
        {"fit": "crop"},
        {"image": [2, 8]},
    ],
    ids=lambda each: "-".join(f"{key}-{value}" for key, value in each.items()),
)
def test_a_damaged_step_is_one_clear_line(broken):
    early = Early(plain(), IMAGE, CLASSES, PrimeNetSettings(reduced=3))
    step = early.replaced(early.find("5")).step()
    for key, value in broken.items():
        (step if key in step else step["origin"])[key] = value
    with pytest.raises(FileError, match="checkpoint") as caught:
        rebuild(plain(), step)
    assert "\n" not in str(caught.value)
