"""A segmenter brought to half its multiply-adds by the commands, through a task: street scenes of CamVid, mIoU.

    mkdir DIR && tar xf camvid.tar -C DIR
    python -m benchmarks.segmenter --data DIR/camvid

A network like U-Net (ours, random weights) learns images of 64x48 pixels, then the same fine-tuning is given to the
network as it is and to what each method leaves. Torch-Pruning (TP) says which channels go, as `benchmarks/real_arms.py`
uses it, and `compressor prune --plan` takes them away, so that all else is alike. Test images judge; void is not
counted. Writes benchmarks/results/segmenter.json and goes on where it was broken off.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import compressor
from benchmarks.real_arms import RECIPES, Case
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.pruning.selection import Selection
from compressor.runs.plans import write_plan
from compressor.training.own_task import OwnTask

OUT = Path(__file__).parent / "results" / "segmenter.json"
SIZE = (64, 48)  # width and height
CLASSES, VOID = 11, 11
PARTS = {"train": "train", "validation": "val", "test": "test"}
# What becomes of the trained network; every one is fine-tuned for as many epochs. "plan" is the peer's recipe.
ARMS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "obs, least squares": {"method": "obs"},
    "obs, least squares, distilled": {"method": "obs", "distill": True},
    "obs, least squares, widths as they come": {"method": "obs", "round_to": 1},
    "l1, batch norm only": {"method": "l1", "allocate": "uniform", "reconstruct": False},
    "TP magnitude": {"plan": "TP magnitude", "reconstruct": False},
    "TP taylor": {"plan": "TP taylor", "reconstruct": False},
    "TP magnitude, least squares": {"plan": "TP magnitude"},
    "TP magnitude, least squares, distilled": {"plan": "TP magnitude", "distill": True},
}


class CamVid:
    """`compressor prune ... --task benchmarks/segmenter.py:CamVid` reads the folder from CAMVID."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = Path(folder or os.environ["CAMVID"])

    def data(self, split: str) -> Dataset[Any]:
        """Images in memory; those to learn from are mirrored at random."""
        return Scenes(self.folder / PARTS[split], mirrored=split == "train")

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy of all pixels but void."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels, ignore_index=VOID)

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Mean over the classes of intersection over union, and the share of pixels that are right."""
        counts = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
        for images, labels in batches:
            found, known = model(images).argmax(1), labels != VOID
            pairs = labels[known] * CLASSES + found[known]
            counts += torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES).cpu()
        right = counts.diagonal().double()
        union = counts.sum(0) + counts.sum(1) - right
        return {"mIoU": float((right / union.clamp_min(1)).mean()), "pixels": float(right.sum() / counts.sum())}

    def inputs(self, batch: Any) -> Tensor:
        """The images."""
        images: Tensor = batch[0]
        return images


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Images (3, 48, 64), normalised, and labels (48, 64)."""

    def __init__(self, folder: Path, *, mirrored: bool) -> None:
        self.images, self.labels = _read(folder)
        self.mirrored = mirrored

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = (self.images[index].float() / 255 - 0.45) / 0.25, self.labels[index].long()
        if self.mirrored and torch.rand(()) < 0.5:
            image, label = image.flip(2), label.flip(1)
        return image, label


@cache
def _read(folder: Path) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for path in sorted((folder / "images").iterdir()):
        image = Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
        label = Image.open(folder / "labels" / f"{path.stem}.png").resize(SIZE, Image.Resampling.NEAREST)
        images.append(np.asarray(image).transpose(2, 0, 1))
        labels.append(np.asarray(label))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


class UNet(nn.Module):
    """Three levels, two convolutions each, skips concatenated (Ronneberger et al. 2015, narrow and with batch norm)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = _pair(3, width), _pair(width, 2 * width), _pair(2 * width, 4 * width)
        self.bottom = _pair(4 * width, 4 * width)
        self.up3, self.up2 = _pair(8 * width, 2 * width), _pair(4 * width, width)
        self.up1, self.head = _pair(2 * width, width), nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, classes, height, width)."""
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        three = self.down3(functional.max_pool2d(two, 2))
        low = self.bottom(functional.max_pool2d(three, 2))
        low = self.up3(torch.cat([functional.interpolate(low, scale_factor=2), three], 1))
        low = self.up2(torch.cat([functional.interpolate(low, scale_factor=2), two], 1))
        scores: Tensor = self.head(self.up1(torch.cat([functional.interpolate(low, scale_factor=2), one], 1)))
        return scores


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def build(width: int = 16) -> nn.Module:
    """The network."""
    return UNet(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/segmenter"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--finetune-epochs", type=int, default=3)
    parser.add_argument("--left", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch_pruning")
    told = {name: getattr(given, name) for name in ("epochs", "finetune_epochs", "left")}
    result = opened(given.out, told, given.device, torch.get_num_threads())
    done = {(row["seed"], row["arm"]) for row in result["rows"]}
    common: dict[str, Any] = {
        "task": CamVid(given.data), "batch_size": 8, "device": given.device, "overwrite": True
    }  # fmt: skip
    for seed in given.seeds:
        trained = given.runs / f"{seed}-trained"
        if not (trained / "report.json").exists():
            arch = f"{__file__}:build"
            compressor.train(arch=arch, epochs=given.epochs, optimizer="adam", seed=seed, out=trained, **common)
        for arm, choice in ARMS.items():
            if (seed, arm) in done:
                continue
            began, out = time.process_time(), given.runs / f"{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
            more = {"epochs": given.finetune_epochs, "lr": 0.01, "seed": seed, "out": out, **common}
            model = trained / "model.safetensors"
            if choice is None:
                report = compressor.finetune(model, **more)
            else:
                asked = {"target_macs": given.left} | choice
                if "plan" in choice:
                    asked = choice | {"plan": _planned(choice["plan"], model, seed, given)}
                report = compressor.prune(model, **asked, **more)
            result["rows"].append(_row(seed, arm, report, time.process_time() - began))
            write_json(given.out, result)
            print(result["rows"][-1], flush=True)


def _planned(recipe: str, model: Path, seed: int, given: argparse.Namespace) -> str:
    """The file of the plan by which a recipe of the peer cuts the trained network."""
    case = Case(compressor.load(model).eval(), OwnTask(CamVid(given.data), "CamVid"), seed, given.finetune_epochs)
    plan, channels = RECIPES[recipe].plan(case, given.left)
    selection = Selection(plan, channels.macs(plan.removed), channels.params(plan.removed), {})
    return str(write_plan(given.runs / f"{seed}-{recipe}-plan", selection, channels, {}, overwrite=True))


def _row(seed: int, arm: str, report: compressor.Report, seconds: float) -> dict[str, Any]:
    before, after = report.before, report.after
    return {
        "seed": seed, "arm": arm, "mIoU_trained": before.main, "mIoU": after.main, "pixels": after.figures["pixels"],
        "macs": after.macs, "macs_before": before.macs, "params": after.params, "bytes": after.file_bytes,
        "ms": {"before": _ms(before), "after": _ms(after)},
        "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def _ms(side: Any) -> float:
    return float(side.latency_ms["onnxruntime"]["median"])


def table(result: dict[str, Any]) -> str:
    """Each method's figures, over the seeds where there are several."""
    lines = [
        "| | mIoU, % | to dense, points | pixels, % | MACs | parameters | ONNX Runtime | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    dense = {row["seed"]: row["mIoU"] for row in result["rows"] if row["arm"] == "dense"}
    for arm in ARMS:
        rows = [row for row in result["rows"] if row["arm"] == arm]
        if not rows:
            continue
        macs, params, size = (statistics.mean(row[key] for row in rows) for key in ("macs", "params", "bytes"))
        ms = statistics.median(row["ms"]["after"] for row in rows)
        lines.append(
            f"| {arm} | {_spread([row['mIoU'] for row in rows])} | "
            f"{'' if arm == 'dense' else _spread([row['mIoU'] - dense[row['seed']] for row in rows], '+')} | "
            f"{_spread([row['pixels'] for row in rows])} | {macs / 1e6:.1f} M | "
            f"{params / 1e3:.0f} k | {ms:.2f} ms | {size / 1e6:.2f} MB |"
        )
    seeds = len({row["seed"] for row in result["rows"]})
    trained = _spread([row["mIoU_trained"] for row in result["rows"] if row["arm"] == "dense"])
    told = (
        f"{result['epochs']} epochs from random weights ({trained} %), then {result['finetune_epochs']} for each; "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}, test images. Time of one image on one thread, each as its own "
        f"run measured it. {result['machine']}, Torch-Pruning {result['torch_pruning']}."
    )
    return "\n".join([*lines, "", told])


def _spread(fractions: list[float], sign: str = "") -> str:
    """In per cent: the mean over the seeds, and the standard deviation where there are several."""
    mean = f"{100 * statistics.mean(fractions):{sign}.2f}"
    return f"{mean} ± {100 * statistics.stdev(fractions):.2f}" if len(fractions) > 1 else mean


if __name__ == "__main__":
    main()
