"""Reports that the tests of this folder draw: one with everything, one with next to nothing."""

import math
from typing import Any

from compressor.report.measurements import LayerSize, Measurements, OnnxCheck
from compressor.report.report import Report
from compressor.report.sections import Curve, Gallery, Plot, Section, Table

LONG = "features.denseblock3.denselayer12.norm.conv_with_a_name_that_nobody_should_have_to_read.conv2"


def timing(median: float) -> dict[str, Any]:
    one = {"median": median, "p95": 1.1 * median, "batch": 1, "runs": 50, "threads": 2}
    return {**one, "larger": {**one, "median": 9 * median, "batch": 16}}


def full_report() -> Report:
    names = ["conv1", *(f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)), LONG]
    rows = [
        {
            "phase": "finetune",
            "epoch": epoch,
            "train_loss": 2 * math.exp(-epoch / 5),
            "train_top1": 1 - 0.9 * math.exp(-epoch / 4),
            "validation_loss": None if epoch % 2 else 2.1 * math.exp(-epoch / 6),
            "validation_top1": None if epoch % 2 else 0.93 - 0.9 * math.exp(-epoch / 3),
        }
        for epoch in range(12)
    ]
    exits = Table(("exit", "MACs", "top-1"), (("first", 1e6, 0.9), ("second", 2e6, None)), "each exit alone")
    cost = Plot("Accuracy against cost", "MMAC", "top-1", (Curve("l1", (1, 2), (0.8, 0.9)),), kind="points")
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    dot = f"data:image/png;base64,{pixel}"
    pictures = Gallery("conv1", (("60 %", (dot,) * 6), ("40 %", (dot, "https://example.org/spy.png"))), "two concepts")
    return Report(
        command="compressor prune runs/vgg11/model.pt --method l1 --data digits --out runs/small --seed 3",
        settings={"method": "l1", "ratio": 0.5, "milestones": [30, 60], "nesterov": True, "scope": None},
        seed=3,
        versions={"python": "3.11.7", "torch": "2.13.0", "torchvision": None},
        device="CPU: Example processor, 2 cores, 2 threads",
        before=Measurements(
            313_201_664,
            314_307_584,
            14_728_266,
            58_912_345,
            {"torch": timing(4.78), "onnxruntime": timing(1.2)},
            0.9321,
        ),
        after=Measurements(
            156_600_832,
            None,
            7_000_000,
            28_000_000,
            {"torch": timing(2.2), "onnxruntime": None},
            0.9281,
            {"macs_thop": "thop failed: no such hook", "latency_ms.onnxruntime": "the export was refused"},
        ),
        edits=(
            {"kind": "prune", "period": 0, "group": "conv1", "channels": list(range(40)), "why": "smallest L1 norm"},
            {"kind": "merge", "period": 2, "group": LONG, "channels": [1, 2], "why": "distance 0.02"},
        ),
        frozen={"fc": "the model's output", LONG: "aten::fft has no rule"},
        refused={"merge in layer1": "its channels are also concatenated"},
        layers=tuple(LayerSize(name, 64 * (1 + i), 40 * (1 + i) if i else 64) for i, name in enumerate(names)),
        notes=("Statistics were re-estimated on 1000 images.",),
        rows=tuple(rows),
        export=OnnxCheck(1e-6, 3.1e-7, 28_000_000, (1, 5), "real", 20),
        sections=(Section("Exits", "Accuracy of every exit.", (exits,), (cost,), (pictures,)),),
    )


def bare_report() -> Report:
    return Report("compressor prune --arch a", {}, None, {}, "cpu", Measurements(), Measurements(macs=7))
