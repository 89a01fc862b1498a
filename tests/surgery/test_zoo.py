"""Half of every free group of real networks pruned, against the masked original; a few always, all with `-m zoo`."""

import pytest
import torch

from benchmarks.networks import TIMM, torchvision_names
from benchmarks.one_network import ours
from compressor import vision
from compressor.graph import capture
from compressor.surgery import operate_
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


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_segmentation_network(name, auxiliary):
    options = {"aux_loss": auxiliary} if not name.startswith("lraspp") else {}
    model = randomise_(vision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **options))
    example = torch.randn(1, 3, 64, 64).double()
    channels = capture(model, example)
    plan = half_plan(channels)
    reference = masked_outputs(model, example, channels, plan.removed)
    operate_(model, plan, channels)
    assert relative_error(outputs(model, example), reference) < 1e-5
    assert channels.macs(plan.removed) < 0.5 * channels.macs()
