"""Names as a person writes them: what they mean, and that unknown ones are refused with the nearest."""

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.graph import capture
from compressor.graph.channels import KEPT
from compressor.graph.names import groups_named, matching, module_named, names_of
from compressor.pruning.oneshot import decide
from compressor.pruning.settings import PruneSettings


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2, self.pool = nn.Conv2d(outputs, outputs, 1), nn.AvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return y


class Net(nn.Module):
    """Blocks 1 and 10, whose names begin alike, a norm in front of the head, and a module that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer10 = nn.Sequential(Block(3, 4)), nn.Sequential(Block(4, 6))
        self.head = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
        self.idle, self.alias = nn.Dropout(), self.layer10

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer10(self.layer1(x)))
        return y


X = torch.randn(2, 3, 8, 8)
ONE, TEN = {"layer1.0.conv1", "layer1.0.conv2"}, {"layer10.0.conv1", "layer10.0.conv2"}
MEANT = {
    "layer1": ONE,
    "layer1.*": ONE,
    "layer1.0": ONE,
    "layer?": ONE,
    "layer*": ONE | TEN,
    "*": ONE | TEN,
    "layer10": TEN,
    "alias": TEN,
    "alias.0.conv1": {"layer10.0.conv1"},
    "layer1.0.conv1": {"layer1.0.conv1"},
    "*.conv1": {"layer1.0.conv1", "layer10.0.conv1"},
    "layer1.0.conv1.weight": {"layer1.0.conv1"},
    "layer1.0.conv1.bias": {"layer1.0.conv1"},
    "layer1.0.conv?.weight": ONE,
    "layer1.0.bn1": {"layer1.0.conv1"},
    "layer1.0.bn1.running_mean": {"layer1.0.conv1"},
    "layer1.0.relu": {"layer1.0.conv1"},
    "layer1.0.pool": {"layer1.0.conv2"},
    "module.layer1.0.conv1": {"layer1.0.conv1"},
    "_orig_mod.layer1": ONE,
    "module._orig_mod.layer1.*": ONE,
    "head": {"layer10.0.conv2"},
    "head.0": {"layer10.0.conv2"},
    "head.1": {"layer10.0.conv2"},
    "head.4": set(),
    "idle": set(),
}


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.mark.parametrize("pattern", MEANT)
def test_keep_freezes_what_the_name_means(net, pattern):
    channels = capture(net, X, keep=[pattern])
    kept = {name for name, reason in channels.frozen.items() if reason == KEPT}
    assert kept == MEANT[pattern]
    assert bool(channels.notes) == (pattern == "idle") and all("'idle'" in note for note in channels.notes)
    assert channels.frozen["head.4"] == "output of the model"


def test_a_name_alone_is_one_name(net):
    assert capture(net, X, keep="layer1").frozen == capture(net, X, keep=["layer1"]).frozen  # type: ignore[arg-type]


UNKNOWN = {
    "layr1": "did you mean layer1?",
    "layer1.0.cnv1": "did you mean layer1.0.conv1?",
    "layer1.conv1": "did you mean layer1.0.conv1?",
    "model.layer10.0.bn1": "did you mean layer10.0.bn1?",
    "layer2.*": "no layer is named",
    "zzz": "the layers are layer1, layer10, head, idle",
    "": "no layer is named ''",
    "LAYER1": "no layer is named",
}


@pytest.mark.parametrize("pattern", UNKNOWN)
@pytest.mark.parametrize("setting", ["keep", "ratio_for"])
def test_unknown_names_are_refused_with_the_nearest(net, pattern, setting):
    with pytest.raises(UsageError, match=f"^{setting}: no layer is named") as refused:
        channels = capture(net, X, keep=[pattern] if setting == "keep" else [])
        decide(net, channels, PruneSettings(ratio_for=((pattern, 0.2),)))
    assert UNKNOWN[pattern] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("pattern", [0, None, nn.ReLU()])
def test_what_is_no_name_is_refused(net, pattern):
    with pytest.raises(UsageError, match="keep takes names of layers"):
        capture(net, X, keep=[pattern])


def test_ratios_go_to_what_the_name_means(net):
    channels = capture(net, X)
    selection = decide(net, channels, PruneSettings(ratio=0.5, ratio_for=(("module.layer10.0", 0.0),)))
    assert {edit.group for edit in selection.plan.edits} == ONE


def test_a_group_of_several_of_one_layer_is_named_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GLU(1), nn.Conv2d(4, 2, 1))
    channels = capture(model, X)
    for group in channels.groups:
        assert groups_named(group.name, channels, "keep") == (group,)


def test_a_real_submodule_called_module_is_found():
    model = nn.Sequential()
    model.add_module("module", nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)))
    assert matching("module.0", names_of(model), "keep") == matching("0", names_of(model), "keep")
    modules = dict(model.named_modules())
    for name in ("0.weight", "module.0", "0"):
        assert module_named(name, names_of(model), modules) == "module.0"


def test_module_named_knows_shared_modules_and_parameters(net):
    names, modules = names_of(net), dict(net.named_modules())
    assert module_named("alias.0", names, modules) == "layer10.0"
    assert module_named("layer1.0.bn1.running_mean", names, modules) == "layer1.0.bn1"
    assert module_named("layer11", names, modules) is None
