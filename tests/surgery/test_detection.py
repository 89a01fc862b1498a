"""torchvision's detectors, small; nms and roi_align are in Python where its compiled operators are missing."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.graph import capture
from compressor.surgery import operate_
from tests.equivalence import half_plan, masked_outputs, outputs


def roi_align(maps: Tensor, rois: Tensor, scale: float, height: int, width: int, *_: Any) -> Tensor:
    """Bilinear samples at the centres of each box's cells."""
    found = []
    for index, left, top, right, bottom in rois.tolist():
        image = maps[int(index)][None]
        x = scale * (left + (right - left) * (torch.arange(width) + 0.5) / width)
        y = scale * (top + (bottom - top) * (torch.arange(height) + 0.5) / height)
        grid = torch.stack(torch.meshgrid(2 * x / image.shape[3] - 1, 2 * y / image.shape[2] - 1, indexing="xy"), -1)
        found.append(nn.functional.grid_sample(image, grid[None].to(maps), align_corners=False))
    return torch.cat(found) if found else maps.new_zeros(0, maps.shape[1], height, width)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    from torchvision.ops import box_iou

    kept: list[int] = []
    overlap = box_iou(boxes, boxes) > iou_threshold
    for index in scores.argsort(descending=True).tolist():
        if not overlap[index, kept].any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


# torchvision loads scripted functions as it runs.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """Stand-ins for what torchvision's library would have."""
    importlib.import_module("compressor.vision.door")  # torchvision can be imported after it
    from torchvision import extension

    if extension._has_ops():
        yield
        return
    library, patch = torch.library.Library("torchvision", "FRAGMENT"), pytest.MonkeyPatch()
    library.impl("nms", nms, "CPU")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("roi_align", roi_align, "CPU")
    library.impl("roi_align", lambda x, rois, _, h, w, *more: x.new_empty(len(rois), x.shape[1], h, w), "Meta")
    for module in ("extension", "ops.boxes", "ops.roi_align"):
        patch.setattr(importlib.import_module(f"torchvision.{module}"), "_has_ops", lambda: True, raising=False)
    yield
    patch.undo()
    library._destroy()


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
