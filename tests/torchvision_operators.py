"""torchvision's nms and roi_align in plain Python, where its compiled operators are missing."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    from torchvision.ops import box_iou

    kept: list[int] = []
    overlap = box_iou(boxes, boxes) > iou_threshold
    for index in scores.argsort(descending=True).tolist():
        if not overlap[index, kept].any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


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


@contextmanager
def stand_ins() -> Iterator[None]:
    """Meanwhile torchvision has both operators."""
    importlib.import_module("compressor.vision.door")  # torchvision can be imported after it
    from torchvision import extension

    if extension._has_ops():
        yield
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.impl("nms", nms, "CPU")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("roi_align", roi_align, "CPU")
    library.impl("roi_align", lambda x, rois, _, h, w, *more: x.new_empty(len(rois), x.shape[1], h, w), "Meta")
    patched = [mock.patch(f"torchvision.{place}._has_ops", lambda: True) for place in ("extension", "ops.roi_align")]
    with patched[0], patched[1]:
        yield
    library._destroy()
