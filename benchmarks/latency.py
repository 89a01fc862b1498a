"""Targets in milliseconds: what `prune_(..., speedup=)` reaches on this machine, and half the MACs beside it.

    python -m benchmarks.latency [--networks NAME ...] [--seconds 3600]

Networks of torchvision and timm with random weights, which set neither work nor time; EfficientNet-Lite0 is timm's,
the detection backbone torchvision's FPN of ResNet-18. One image, one thread. For each target (a share of the dense
network's time) the pruned network is exported anew and timed beside the dense one, in turn, 9 rounds; a target is met
where the middle 90 % of the ratios overlap 5 % around it. Writes benchmarks/results/latency.json, row by row.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import build
from compressor import prune_
from compressor.exporting.latency import Compared, side_by_side
from compressor.exporting.onnx import export_onnx
from compressor.profiling.timetable import preferred_multiple
from compressor.report.environment import device_words, versions
from compressor.vision import door as vision

OUT = Path(__file__).parent / "results" / "latency.json"
NETWORKS = (
    "torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50", "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_large", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0",
    "torchvision:regnet_y_400mf", "torchvision:regnet_x_400mf", "torchvision:vgg11_bn", "torchvision:densenet121",
    "torchvision:googlenet", "torchvision:mnasnet1_0", "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x1_0",
    "timm:efficientnet_lite0", "timm:resnet26d", "timm:hardcorenas_a", "timm:repvgg_a0", "fpn:resnet18",
)  # fmt: skip
SHARES = (0.75, 0.5, 0.35)


class Backbone(nn.Module):
    """A detector's backbone: ResNet-18 with a feature pyramid, whose five maps are the outputs."""

    def __init__(self) -> None:
        super().__init__()
        vision.build("resnet18")  # opens the door to torchvision
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        self.body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.body(x).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no network after so long")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    began = time.monotonic()
    result = json.loads(given.out.read_text()) if given.out.exists() else {"rows": []}
    told = {
        "what": "l1 without data, random weights, one image, one thread of ONNX Runtime; times against dense",
        "command": "python -m benchmarks.latency",
        "machine": device_words(torch.device("cpu")),
        "versions": versions(),
        "multiple": preferred_multiple()[0],
        "shares": SHARES,
    }
    for name in given.networks:
        if any(row["network"] == name for row in result["rows"]) or time.monotonic() - began > given.seconds:
            continue
        row = measured(name)
        result = told | {"rows": [*result["rows"], row]}
        given.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(result))


def measured(name: str) -> dict[str, Any]:
    """A network at every target, and at half of the MACs."""
    torch.manual_seed(0)
    model, example = (Backbone(), torch.randn(1, 3, 224, 224)) if name.startswith("fpn:") else build(name)
    model.eval()
    row: dict[str, Any] = {"network": name, "cells": []}
    with tempfile.TemporaryDirectory() as folder:
        dense, after = Path(folder) / "dense.onnx", Path(folder) / "after.onnx"
        export_onnx(model, example, dense)

        def beside(pruned: nn.Module) -> Compared:
            export_onnx(pruned, example, after)
            return Compared.of(side_by_side([dense, after], tuple(example.shape), 1))

        row["dense_ms"] = float(np.median([each[0] for each in side_by_side([dense], tuple(example.shape), 1)]))
        for share in SHARES:
            row["cells"].append(cell(model, example, 1 / share, beside) | {"share": share})
        half = copy.deepcopy(model)
        report = prune_(half, example, target_macs=0.5)
        found = beside(half)
        row |= {"macs": report.before.macs, "half": {"ratio": found.ratio, "low": found.low, "high": found.high}}
    return row


def cell(model: nn.Module, example: Tensor, speedup: float, beside: Any) -> dict[str, Any]:
    """One target: what it was predicted to take when it was chosen, and what it takes now."""
    pruned = copy.deepcopy(model)
    start = time.perf_counter()
    try:
        report = prune_(pruned, example, speedup=speedup)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:160]}"}
    seconds = time.perf_counter() - start
    assert report.before.macs and report.after.macs
    found = beside(pruned)
    note = next(note for note in report.notes if "predicted were" in note)
    dense, predicted = (float(note.rpartition(words)[2].split()[0]) for words in ("where it took ", "predicted were "))
    return {
        "predicted": predicted / dense, "ratio": found.ratio, "low": found.low, "high": found.high,
        "macs": report.after.macs / report.before.macs, "seconds": seconds,
    }  # fmt: skip


def met(cell: dict[str, Any]) -> bool:
    """Whether the middle 90 % of the ratios overlap 5 % around the target."""
    return "failed" not in cell and cell["low"] <= 1.05 * cell["share"] and cell["high"] >= 0.95 * cell["share"]


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    heads = " | ".join(f"{share:g}" for share in SHARES)
    rows = result["rows"]
    cells = [cell for row in rows for cell in row["cells"]]
    near = sum(abs(c["predicted"] / c["ratio"] - 1) <= 0.1 for c in cells if "failed" not in c)
    lines = [
        f"Time against the dense network's at targets of {heads.replace(' | ', ', ')} of it, random weights, one "
        "image, one thread of ONNX Runtime, medians of 9 rounds in turn; * is off by more than 5 %. "
        f"{result['machine']}. "
        f"{sum(map(met, cells))} of {len(cells)} targets are met; {near} of {len(cells)} predictions are within 10 %.",
        "",
        f"| network | dense | {heads} | half of the MACs |",
        "|---|---|" + "---|" * len(SHARES) + "---|",
    ]
    for row in rows:
        found = ("-" if "failed" in cell else f"{cell['ratio']:.2f}{'' if met(cell) else '*'}" for cell in row["cells"])
        lines.append(
            f"| {row['network']} | {row['dense_ms']:.1f} ms | {' | '.join(found)} | {row['half']['ratio']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
