"""How fast half of the multiply-adds is: `compressor.prune_` by default and with widths as they come, in ONNX Runtime.

    python -m benchmarks.widths [--networks NAME ...]

Networks of torchvision with random weights, which set neither work nor time. The dense one and both pruned ones run in
turn on one thread, batch 1; the ratio is the median over rounds. Writes benchmarks/results/widths.json.
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.in_turn import in_turn
from compressor import prune_
from compressor.profiling.timetable import preferred_multiple
from compressor.report.environment import device_words, versions
from compressor.vision import door as vision

OUT = Path(__file__).parent / "results" / "widths.json"
NETWORKS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "vgg11_bn",
)
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    told = {
        "what": "half of the MACs by l1, random weights, 224 pixels, batch 1, one thread; time against dense",
        "machine": device_words(torch.device("cpu")),
        "versions": versions(),
        "multiple": preferred_multiple()[0],
        "rounds": ROUNDS,
    }
    rows = []
    for name in arguments.networks:
        rows.append(row(name))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    arguments.out.write_text(json.dumps(told | {"rows": rows}, indent=1) + "\n")
    print(table(told | {"rows": rows}))


def row(name: str) -> dict[str, Any]:
    """Time of both ways against the dense network."""
    torch.manual_seed(0)
    dense = vision.build(name).eval()
    example = torch.randn(1, 3, 224, 224)
    found: dict[str, Any] = {"network": name}
    nets = {"dense": dense}
    for way, multiple in (("default", "auto"), ("as they come", 1)):
        nets[way] = copy.deepcopy(dense)
        report = prune_(nets[way], example, target_macs=0.5, round_to=multiple)
        assert report.before.macs and report.after.macs
        found[f"macs, {way}"] = report.after.macs / report.before.macs
    times = {way: each.seconds for way, each in in_turn(nets, example, ROUNDS).items()}
    found["dense_ms"] = 1e3 * statistics.median(times["dense"])
    for way in ("default", "as they come"):
        ratios = [one / whole for one, whole in zip(times[way], times["dense"], strict=True)]
        found[f"time, {way}"] = statistics.median(ratios)
    return found


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "Half of the multiply-adds by `prune_` without data, random weights, ONNX Runtime, batch 1: time against the "
        f"dense network's, medians of {result['rounds']} rounds in turn. {result['machine']}.",
        "",
        f"| network | dense | multiples of {result['multiple']} | widths as they come |",
        "|---|---|---|---|",
    ]
    for each in result["rows"]:
        cells = (f"{each[f'time, {way}']:.2f}" for way in ("default", "as they come"))
        lines.append(f"| {each['network']} | {each['dense_ms']:.1f} ms | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
