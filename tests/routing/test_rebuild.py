"""A skipping network from a checkpoint's step: the same again, or one clear line."""

import json

import pytest
import torch

from compressor.errors import FileError
from compressor.routing.rebuild import rebuild
from tests.routing.nets import Residual, Three, images, routed


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (Three, {"router": "argmax", "heads": "shared"}),
        (Residual, {"leave_after": (1, 3)}),
        (Residual, {"adapters": True, "heads": "shared"}),
    ],
    ids=["paper", "two depths", "adapters"],
)
def test_step_makes_the_same_network_again(network, layout):
    net = routed(network, **layout).eval()
    net.set_threshold_(0.4)
    step = json.loads(json.dumps(net.step()))
    again = rebuild(network(), step).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images()), net(images()))
    assert again.step() == net.step()


@pytest.mark.parametrize(
    "damage",
    [
        {"input_shape": [1, 8]}, {"input_shape": None}, {"classes": "many"}, {"leave_after": [0, 9]},
        {"router": "oracle"}, {"units": ["0", "2"]}, {"heads": None}, {"grids": [4]}, {"grids": [4, 0]},
    ],
    ids=lambda damage: next(iter(damage)),
)  # fmt: skip
def test_damaged_step_is_one_line(damage):
    with pytest.raises(FileError, match="does not fit its network") as error:
        rebuild(Three(), {**routed(heads="own").step(), **damage})
    assert "\n" not in str(error.value)


def test_step_without_its_parts_is_one_line():
    step = routed().step()
    del step["router"]
    with pytest.raises(FileError, match="damaged"):
        rebuild(Three(), step)


def test_step_of_another_architecture_is_one_line():
    with pytest.raises(FileError, match="another architecture"):
        rebuild(Residual(), routed().step())
