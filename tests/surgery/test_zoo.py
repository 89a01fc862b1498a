"""Real networks: half of every free group pruned, against the masked original; merged and grown, outputs unchanged.

A few always, all with `-m zoo`.
"""

import pytest
import torch

from benchmarks.networks import TIMM, torchvision_names
from benchmarks.one_network import edits, ours
from compressor.graph import capture
from compressor.surgery import operate_
from compressor.vision import door as vision
from tests.equivalence import half_plan, masked_outputs, outputs, randomise_, relative_error

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
    row = edits(name)
    assert row["status"] in ("edited", "whole"), (row["failures"], row["errors"])
    assert row["status"] == "edited" or row["reasons"] or not row["prune_only"]


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
