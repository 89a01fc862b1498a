"""Whole blocks against widths at the same cost: ResNets on CIFAR-10, networks of inverted residuals on two sets.

    python -m benchmarks.blocks --nets DIR --data cifar10-jpeg=folder:DIR --data fashion-mnist=fashion-mnist:DIR \\
        --data imagenette=folder:DIR --lite0 FILE

The trained networks, images and short fine-tuning of `benchmarks/real.py`, and a small MobileNetV2 that is trained here
for two epochs on 20,000 images of Fashion-MNIST. `--method blocks` goes first; `mixed`, and `obs` with widths by the
error, are then asked for the multiply-adds, or the milliseconds of one image on one thread of ONNX Runtime, that blocks
came to, so that all cost the same. All refit by least squares on the same images. Times are of the exported graphs, in
turn with the dense one's. Writes benchmarks/results/blocks.json, cell by cell, and goes on where it ended.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import real
from benchmarks.adapnet_small import subset
from benchmarks.real_arms import Case
from benchmarks.resumable import opened
from compressor import prune_
from compressor.exporting.latency import Compared, side_by_side
from compressor.exporting.onnx import export_onnx
from compressor.files.paths import write_json
from compressor.report import units
from compressor.training.data import Data
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import seed_everything_
from compressor.training.settings import DataSettings, TrainSettings
from compressor.vision import door as vision

OUT = Path(__file__).parent / "results" / "blocks.json"
TARGETS = {
    "resnet20": ({"speedup": 1.5}, {"target_macs": 0.5}),
    "resnet56": ({"target_macs": 0.5},),
    "small mobilenet_v2": ({"speedup": 1.5}, {"target_macs": 0.5}),
    "efficientnet_lite0": ({"speedup": 1.5},),
}


def _mobilenet(arguments: argparse.Namespace, data: Data) -> nn.Module:
    assert vision  # before torchvision
    from torchvision.models import MobileNetV2

    blocks = [[1, 16, 1, 1], [6, 24, 3, 2], [6, 40, 3, 2], [6, 64, 2, 1]]
    seed_everything_(0)
    model: nn.Module = MobileNetV2(num_classes=len(data.classes), inverted_residual_setting=blocks)
    stem = model.get_submodule("features.0")
    assert isinstance(stem, nn.Sequential)
    stem[0] = nn.Conv2d(data.input_shape[0], 32, 3, padding=1, bias=False)
    fit(model, subset(data, 20_000, 0), TrainSettings(epochs=2, device=arguments.device, evaluate_every=0))
    return model


NETWORKS = real.NETWORKS | {
    "small mobilenet_v2": real.Network("fashion-mnist", _mobilenet, (), 4000, loading=DataSettings())
}
ARMS = {"blocks": "blocks", "mixed": "mixed", "widths": "obs"}


def main() -> None:
    parser = real.parser_of(__doc__, TARGETS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    specs = dict(each.split("=", 1) for each in arguments.data)
    result = opened(arguments.out, {"epochs": arguments.epochs}, arguments.device, torch.get_num_threads())
    for name in arguments.networks:
        case = real.case_of(NETWORKS[name], specs[NETWORKS[name].data], 0, arguments)
        done = {(row["network"], row["target"], row["arm"]): row for row in result["rows"]}
        if (name, "none", "dense") not in done:
            _keep(arguments.out, result, {"network": name, "target": "none", "arm": "dense", **_top1(case, case.start)})
        for target in TARGETS[name]:
            [(kind, value)] = target.items()
            asked = target
            for arm, method in ARMS.items():
                key = (name, f"{kind} {value:g}", arm)
                if key not in done:
                    row = dict(zip(("network", "target", "arm"), key, strict=True)) | _cell(case, method, asked)
                    done[key] = _keep(arguments.out, result, row)
                if arm == "blocks":
                    asked = {kind: _reached(kind, done[key])}
    print(table(result))


def _reached(kind: str, row: dict[str, Any]) -> float:
    return float(row["macs_left"] if kind == "target_macs" else 1 / row["ratio"])


def _keep(out: Path, result: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    result["rows"].append(row)
    write_json(out, result)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _cell(case: Case, method: str, asked: dict[str, float]) -> dict[str, Any]:
    seed_everything_(case.seed)
    model, start = copy.deepcopy(case.start), time.process_time()
    try:
        report = prune_(model, case.example, method, data=case.inputs(), **asked)  # type: ignore[arg-type]
    except Exception as error:
        return {"asked": asked, "failed": f"{type(error).__name__}: {str(error)[:200]}"}
    seconds = time.process_time() - start
    assert report.before.macs and report.after.macs
    found = _beside(case, model)
    row = {
        "asked": asked,
        "macs_left": report.after.macs / report.before.macs,
        "params": report.after.params,
        "ratio": found.ratio, "low": found.low, "high": found.high,
        "edits": [[edit["kind"], edit["group"]] for edit in report.edits if "channels" not in edit],
        "notes": list(report.notes),
        "cut_cpu_seconds": round(seconds, 1),
        "untrained_top1": _top1(case, model)["top1"],
    }  # fmt: skip
    case.train_(model, case.epochs)
    return row | _top1(case, model)


def _top1(case: Case, model: nn.Module) -> dict[str, float]:
    return {"top1": evaluate(model, case.data.test, case.data).top1}


def _beside(case: Case, model: nn.Module) -> Compared:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "dense.onnx", Path(folder) / "after.onnx"
        for module, file in zip((case.start, model), files, strict=True):
            export_onnx(module, case.example, file)
        return Compared.of(side_by_side(files, tuple(case.example.shape), 1))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Top-1 right after the cut, and after {units.counted(result['epochs'], 'epoch')} of fine-tuning; time of one "
        f"image on one thread of ONNX Runtime against the dense network's, medians of 9 rounds in turn. "
        f"{result['machine']}.",
        "",
        "| network | asked for | by | MACs | time | after the cut | fine-tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["arm"] == "dense":
            cells = ["", "dense", "1.00x", "1.00x", "", units.percent(row["top1"])]
        elif "failed" in row:
            cells = [row["target"].replace("_", " "), row["arm"], "-", "-", "-", "-"]
        else:
            times, right = f"{row['ratio']:.2f}x", (units.percent(row[key]) for key in ("untrained_top1", "top1"))
            cells = [row["target"].replace("_", " "), row["arm"], f"{row['macs_left']:.2f}x", times, *right]
        lines.append(f"| {row['network']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
