"""torchvision's detectors, small; nms and roi_align are in Python where its compiled operators are missing."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import compressor
from compressor.graph import capture
from compressor.surgery import operate_
from tests.equivalence import half_plan, masked_outputs, outputs
from tests.torchvision_operators import stand_ins

# torchvision loads scripted functions as it runs.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    with stand_ins():
        yield


class Backbone(nn.Sequential):
    """Maps of 16 channels, an eighth of the image."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(12, 16, 3, 2, 1),
        )  # fmt: skip


def detector(kind: str) -> nn.Module:
    from torchvision.models import detection
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    anchors = detection.rpn.AnchorGenerator(((16, 32),), ((1.0,),))
    sizes = {"min_size": 48, "max_size": 64, "num_classes": 3}
    if kind == "RetinaNet":
        anchors = detection.rpn.AnchorGenerator(((16,),), ((1.0,),))
        return getattr(detection, kind)(Backbone(), anchor_generator=anchors, **sizes, score_thresh=0.0).eval()
    pool = MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=1)
    few = {"rpn_pre_nms_top_n_test": 8, "rpn_post_nms_top_n_test": 4, "box_score_thresh": 0.0}
    head = detection.faster_rcnn.TwoMLPHead(16 * 9, 20)
    given = {"rpn_anchor_generator": anchors, "box_roi_pool": pool, "box_head": head, **few}
    if kind == "KeypointRCNN":
        given["keypoint_roi_pool"] = pool
        given["keypoint_head"] = detection.keypoint_rcnn.KeypointRCNNHeads(16, (12, 12))
        given["keypoint_predictor"] = detection.keypoint_rcnn.KeypointRCNNPredictor(12, 2)
    sizes.pop("num_classes")
    box = detection.faster_rcnn.FastRCNNPredictor(20, 3)
    return getattr(detection, kind)(Backbone(), None, box_predictor=box, **given, **sizes).eval()


@pytest.mark.parametrize("kind", ["FasterRCNN", "RetinaNet"])
def test_detectors_find_what_the_masked_ones_find(kind):
    model, example = detector(kind).double(), ([torch.rand(3, 48, 64, dtype=torch.float64)],)
    channels = capture(model, example)
    body = {group.name for group in channels.groups if group.name.startswith(("backbone", "rpn.head.conv", "head"))}
    outputs_of_the_model = {"head.classification_head.cls_logits", "head.regression_head.bbox_reg"}
    assert {group.name for group in channels.free} >= body - outputs_of_the_model and len(channels.free) >= 6
    plan = half_plan(channels)
    reference = masked_outputs(model, example, channels, plan.removed)
    operate_(model, plan, channels)
    after = outputs(model, example)
    assert len(after[0]) > 3 and [each.shape for each in after] == [each.shape for each in reference]
    for one, other in zip(after, reference, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow  # it reads every heat map's maximum in Python, in every trial
def test_a_pose_network_is_pruned_and_still_detects():
    model, example = detector("KeypointRCNN"), ([torch.rand(3, 48, 64)],)
    report = compressor.prune_(model, example, ratio=0.4, round_to=1)
    assert len({edit["group"] for edit in report.edits}) >= 8
    assert model(*example)[0]["keypoints"].shape[1:] == (2, 3)
