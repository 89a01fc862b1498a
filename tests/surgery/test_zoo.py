"""Real networks: half of every free group pruned, against the masked original; merged and grown, outputs unchanged.

A few always, all with `-m zoo`.
"""

import pytest
import torch

from benchmarks.networks import TIMM, torchvision_names
from benchmarks.one_network import build, ours
from compressor import vision
from compressor.graph import capture
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from tests.equivalence import duplicate_, half_plan, masked_outputs, outputs, randomise_, relative_error

ALWAYS = ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:test_byobnet"]
ALL = [f"torchvision:{name}" for name in torchvision_names()] + [f"timm:{name}" for name in TIMM]


def check(name: str) -> None:
    row = ours(name)
    assert row["status"] in ("pruned", "whole"), row["failures"]
    assert row["status"] == "pruned" or row["reasons"], "left whole without a reason"


@pytest.mark.parametrize("name", ALWAYS)
def test_small_network(name):
    check(name)


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")  # the libraries' own, on old networks
@pytest.mark.parametrize("name", [name for name in ALL if name not in ALWAYS])
def test_network(name):
    check(name)


@pytest.mark.parametrize("name", ALWAYS[1:])
def test_small_network_merges_and_grows(name):
    check_merge_and_insert(name)


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ALL if name not in ALWAYS[1:]])
def test_network_merges_and_grows(name):
    check_merge_and_insert(name)


def check_merge_and_insert(name: str) -> None:
    """A copy inserted with split readers, one pruned again, two equal channels merged: in every group at once."""
    model, example = build(name)
    example = example.double()
    channels = capture(randomise_(model), example)
    groups = [group for group in channels.free if group.prune_only is None]
    assert groups or all(group.prune_only for group in channels.free)
    before, weights = outputs(model, example), {key: value.clone() for key, value in model.state_dict().items()}
    for columns in ("zero", "split"):
        plan = Plan(tuple(Insert(group.name, int(group.ids[0]), "copy", columns=columns) for group in groups))
        grown = operate_(model, plan, channels)
        assert relative_error(outputs(model, example), before) < 1e-5
        new = {group.name: set(grown.group(group.name).ids.tolist()) - set(group.ids.tolist()) for group in groups}
        channels = operate_(model, Plan(tuple(Prune(group, tuple(ids), "back") for group, ids in new.items())), grown)
        now = model.state_dict()
        same = [torch.equal(weights[key], now[key]) for key in weights if weights[key].shape == now[key].shape]
        assert len(same) == len(weights)
        assert all(same) or columns == "split"  # which leaves halves of the readers' columns
        for key, value in now.items():
            value.copy_(weights[key])
    pairs = {group.name: duplicate_(model, channels, group.name) for group in groups}
    before = outputs(model, example)
    operate_(model, Plan(tuple(Merge(group, *pair, "equal") for group, pair in pairs.items())), channels)
    assert relative_error(outputs(model, example), before) < 1e-5


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_segmentation_network(name, auxiliary):
    options = {"aux_loss": auxiliary} if not name.startswith("lraspp") else {}
    model = randomise_(vision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **options))
    check_backbone(model, torch.randn(1, 3, 64, 64).double())


def check_backbone(model: torch.nn.Module, example: torch.Tensor) -> None:
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    channels = capture(model, example)
    plan = half_plan(channels)
    reference = masked_outputs(model, example, channels, plan.removed)
    operate_(model, plan, channels)
    assert relative_error(outputs(model, example), reference) < 1e-5
    assert channels.macs(plan.removed) < 0.5 * channels.macs()
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet18 fpn", "mobilenet fpn", "ssdlite"])
def test_detection_backbone(name):
    found = vision.models.detection
    parts = found.backbone_utils
    if name == "resnet18 fpn":  # frozen batch norm, maps of every size in a dict
        model = parts.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    elif name == "mobilenet fpn":
        options = {"weights": None, "fpn": True, "trainable_layers": 2}  # the first layers take no gradients
        model = parts.mobilenet_backbone(backbone_name="mobilenet_v3_large", **options)
    else:
        model = found.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).backbone
    check_backbone(randomise_(model), torch.randn(1, 3, 128, 128).double())
