"""Every network of ultralytics' own files: most of it can be pruned, and what is left equals the masked original.

Their heads keep anchors on the module, read strides and sizes out of tensors, and give other outputs in each mode.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.graph import capture
from compressor.graph.skeleton import skeleton
from compressor.surgery import operate_
from compressor.vision import door as vision
from tests.equivalence import calibrated, half_plan, masked_outputs, outputs, randomise_, relative_error

assert vision.models, "torchvision's operators are declared before ultralytics asks for them"
ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
TASKS = {"seg": "Segmentation", "pose": "Pose", "obb": "OBB", "cls": "Classification"}
FOLDER = Path(ultralytics.__file__).parent / "cfg" / "models"
SPECIAL = ("world", "yoloe", "depth", "sem", "rtdetr")  # other tasks: they read texts, or decode with attention
NAMES = sorted(path.name for path in FOLDER.glob("*/yolo*.yaml") if not any(word in path.name for word in SPECIAL))
NAMES.remove("yolo11-cls-resnet18.yaml")  # downloads weights


def build(name: str) -> nn.Module:
    from ultralytics.nn import tasks

    task = next((kind for suffix, kind in TASKS.items() if f"-{suffix}" in name), "Detection")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(tasks, f"{task}Model")(name, ch=3, verbose=False)


def tensors(model: nn.Module, x: Any) -> list[torch.Tensor]:
    found = [tensor for tensor in outputs(model, x) if tensor.is_floating_point()]
    assert all(tensor.isfinite().all() for tensor in found)
    return found


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_half_of_it_goes(name: str) -> None:
    images = torch.randn(8, 3, 128, 128, dtype=torch.float64)  # the coarsest map is a 64th
    model, x = calibrated(randomise_(build(name)), images), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    channels = capture(model, x)
    assert len(channels.free) > 0.7 * len(channels.groups), channels.frozen
    plan = half_plan(channels)
    pruned = skeleton(model, real=True)
    operate_(pruned, plan, channels)
    expected = [t for t in masked_outputs(model, x, channels, plan.removed) if t.is_floating_point()]
    assert relative_error(tensors(pruned.eval(), x), expected) < 1e-9
    assert relative_error(tensors(model.eval(), x), expected) > 1e-3, "the cut has to show at all"
    pruned.train()(torch.cat([x, x]))
