"""What share of the convolutions of detectors, segmenters and other networks than classifiers can be edited.

    python -m benchmarks.editable                # those whose library is installed; goes on where it was broken off
    python -m benchmarks.editable --only yolo11  # names that contain it

Half of every free group is pruned from each network (random weights, small inputs), and what is left is held against
the masked original. "editable": of the multiply-adds of all convolutions, the share of those that make or read
channels which may go; "made": that make such. Writes benchmarks/results/editable.json, one process a network.
"""

import argparse
import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.one_network import alone, halved
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.vision import door as vision
from tests.equivalence import calibrated, move, randomise_
from tests.torchvision_operators import stand_ins

OUT = Path(__file__).parent / "results" / "editable.json"
LIMIT = 300  # seconds of one CPU, a network
Built = tuple[nn.Module, Any, Any]  # the network, an input, one in training mode

# Of every version each task that it has, in the smallest size; tests/surgery/test_ultralytics.py tries every file.
YOLOS = ["yolov3-tiny", "yolov5n", "yolov6n", "yolov9t", "yolov9c-seg", "yolov10n"] + [
    f"{version}n{task}"
    for version in ("yolov8", "yolo11", "yolo12", "yolo26")
    for task in ("", "-seg", "-pose", "-cls", "-obb")
]

_FEW = {"score_thresh": 0.0, "detections_per_img": 4, "topk_candidates": 8}
_FEW_RCNN = {
    "box_score_thresh": 0.0, "box_detections_per_img": 4, "rpn_pre_nms_top_n_test": 8, "rpn_post_nms_top_n_test": 6,
}  # fmt: skip


def detector(name: str) -> Built:
    """Of torchvision, with the targets it asks for in training."""
    own = _FEW_RCNN if "rcnn" in name else _FEW
    sizes = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
    classes = 2 if name.startswith("keypoint") else 5
    model = vision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **own, **sizes)
    boxes = torch.tensor([[8.0, 8.0, 60.0, 50.0], [30.0, 20.0, 90.0, 80.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if name.startswith("mask"):
        target["masks"] = torch.ones(2, 96, 128, dtype=torch.uint8)
    if name.startswith("keypoint"):
        target["keypoints"] = torch.cat([torch.rand(2, 17, 2) * 40 + 10, torch.ones(2, 17, 1)], 2)
    images = [torch.rand(3, 96, 128) for _ in range(2)]
    return model, (images[:1],), (images, [target, target])


def segmenter(name: str) -> Built:
    """Of torchvision."""
    model = vision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    return model, *_images(64)


def ultralytics(name: str) -> Built:
    """By the name of its file, in the smallest size."""
    from tests.surgery.test_ultralytics import build

    return build(name), *_images(128)


def segmentation_models(name: str) -> Built:
    library = importlib.import_module("segmentation_models_pytorch")
    model = getattr(library, name)("mit_b0" if name == "Segformer" else "resnet18", encoder_weights=None, classes=5)
    return model, *_images(128)


def diffusion(name: str) -> Built:
    """A UNet of diffusers', small, with its time step and, where it is conditioned, a text of four words."""
    library = importlib.import_module("diffusers")
    small: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 4,
    }
    text, step = torch.randn(2, 4, 24), torch.tensor(3)
    if name == "UNet1DModel":
        model, x = library.UNet1DModel(sample_size=64, extra_in_channels=64), torch.randn(2, 2, 64)
        return model, (x[:1], step), (x, step)
    if name == "UNet2DModel":
        kinds = {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        model, x = library.UNet2DModel(**small, **kinds), torch.randn(2, 3, 16, 16)
        return model, (x[:1], step), (x, step)
    if name == "AutoencoderKL":
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        return library.AutoencoderKL(**small, **kinds), *_images(32)
    own, shape = {"attention_head_dim": 4, "cross_attention_dim": 24}, (2, 4, 16, 16)
    if name == "UNet3DConditionModel":
        kinds, shape = _crossed("3D"), (2, 4, 3, 16, 16)
    else:
        kinds = _crossed("2D")
    model, x = getattr(library, name)(**small, **kinds, **own), torch.randn(shape)
    return model, (x[:1], step, text[:1]), (x, step, text)


def _crossed(dims: str) -> dict[str, Any]:
    down, up = (f"CrossAttnDownBlock{dims}", f"DownBlock{dims}"), (f"UpBlock{dims}", f"CrossAttnUpBlock{dims}")
    return {"down_block_types": down, "up_block_types": up}


def written_here(name: str) -> Built:
    return globals()[name](), *_images(16)


class ConvLSTM(nn.Module):
    """Two cells over a sequence of shifted images: gates of one convolution, a state that forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.second = nn.Conv2d(6 + 8, 4 * 8, 3, padding=1), nn.Conv2d(8 + 12, 4 * 12, 3, padding=1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(2, len(x), layer.out_channels // 4, *x.shape[2:]) for layer in (self.first, self.second)]
        for shift in range(3):
            given = self.stem(x.roll(shift, 3))
            for place, layer in enumerate((self.first, self.second)):
                hidden, cell = states[place]
                entry, forget, out, new = layer(torch.cat([given, hidden], 1)).chunk(4, 1)
                cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
                given = out.sigmoid() * cell.tanh()
                states[place] = torch.stack([given, cell])
        return self.head(given)


class Masked(nn.Module):
    """Positions picked by boolean masks: bright ones are looked at further, dark ones are overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
        self.token = nn.Linear(24, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean(1) > x.mean()
        features = self.stem(x) * bright[:, None]
        features = self.body(features).permute(0, 2, 3, 1)
        found = features.new_zeros(*bright.shape, self.token.out_features)
        found[bright] = self.token(features[bright])
        return self.head(found.flatten(1, 2).mean(1))


def _images(size: int) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 3, size, size)
    return images[:1], images


def names() -> dict[str, tuple[Callable[[str], Built], list[str]]]:
    """What each library has, those that are not installed left out."""
    found: dict[str, tuple[Callable[[str], Built], list[str]]] = {
        "detection": (detector, vision.models.list_models(vision.models.detection)),
        "segmentation": (segmenter, vision.models.list_models(vision.models.segmentation)),
        "here": (written_here, ["ConvLSTM", "Masked"]),
    }
    if importlib.util.find_spec("ultralytics"):
        found["ultralytics"] = ultralytics, [f"{name}.yaml" for name in YOLOS]
    if importlib.util.find_spec("segmentation_models_pytorch"):
        smp = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer"
        found["segmentation_models_pytorch"] = segmentation_models, smp.split()
    if importlib.util.find_spec("diffusers"):
        unets = "UNet1DModel UNet2DModel UNet2DConditionModel UNet3DConditionModel AutoencoderKL"
        found["diffusers"] = diffusion, unets.split()
    return found


def measured(build: Callable[[str], Built], name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model, *examples = build(name)
    example, training = (move(each, torch.float64) for each in examples)
    if name.startswith("keypoint"):  # torchvision takes them in this type alone
        for target in training[1]:
            target["keypoints"] = target["keypoints"].float()
    with stand_ins():
        return halved(calibrated(randomise_(model), training), example, training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    what = "half of every free group pruned, random weights, against the masked original"
    result = opened(arguments.out, {"what": what, "limit_cpu_s": LIMIT}, "cpu", torch.get_num_threads())
    known = {row["network"] for row in result["rows"]}
    for library, (build, held) in names().items():
        for name in held:
            network = f"{library}:{name}"
            if network in known or arguments.only not in network:
                continue
            row = {"network": network, **alone(LIMIT, measured, build, name)}
            result["rows"].append(row)
            write_json(arguments.out, result)
            shares = row.get("convolutions", {})
            told = f"{shares.get('editable', 0):6.1%} editable {shares.get('made', 0):6.1%} made"
            print(f"{network:45} {row['status']:8} {told} {row['failures'] or ''}", flush=True)
    print(
        json.dumps(
            {"below 90 %": [r["network"] for r in result["rows"] if r.get("convolutions", {}).get("editable", 0) < 0.9]}
        )
    )


_FAMILIES = {
    "detection": "torchvision's detectors",
    "segmentation": "torchvision's segmenters",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "ultralytics": "ultralytics' YOLO 3 to 26, every task of 8, 11, 12 and 26",
    "diffusers": "diffusers' small UNets and an autoencoder",
}


def table(result: dict[str, Any]) -> str:
    """The shares of multiply-adds in layers whose channels may go, by family, and what is not as it should be."""
    lines = [
        "| networks | channels that they make may go | that they make or read | off the masked original, at most "
        "| checks that fail |",
        "|---|---|---|---|---|",
    ]
    for family, title in _FAMILIES.items():
        rows = [row for row in result["rows"] if row["network"].partition(":")[0] == family]
        made, reached = (_span([row["convolutions"][key] for row in rows]) for key in ("made", "editable"))
        failures = "; ".join(
            f"{row['network'].partition(':')[2]}: {', '.join(row['failures'])}" for row in rows if row["failures"]
        )
        failures = failures.replace("|", "").replace("[", "").replace("]", "")
        off = max(row["error"] for row in rows)
        lines.append(f"| {title} ({len(rows)}) | {made} | {reached} | {off:.0e} | {failures or 'none'} |")
    return "\n".join([*lines, "", f"{result['machine']}, torch {result['versions']['torch']}."])


def _span(shares: list[float]) -> str:
    low, high = min(shares), max(shares)
    return f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}"


if __name__ == "__main__":
    main()
