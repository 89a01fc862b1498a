"""What the networks of `benchmarks/real.py` cost where half of their multiply-adds are left: milliseconds and bytes.

    python -m benchmarks.real_costs --nets DIR --data cifar10-jpeg=folder:DIR --data fashion-mnist=fashion-mnist:DIR \\
        --data imagenette=folder:DIR --lite0 efficientnet-lite0-57934424.pth

Each arm cuts as it does there, with the first seed, and is not trained, which changes no cost. All arms of a network
then run in turn in ONNX Runtime on one thread, one image, and so does the whole network: processor time, medians over
the rounds. Writes benchmarks/results/real_costs.json network by network and goes on where it was broken off.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.in_turn import in_turn
from benchmarks.real import NETWORKS, case_of, parser_of
from benchmarks.real_arms import ARMS
from benchmarks.real_show import Rows, best_recipe, measured
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.graph import capture
from compressor.profiling.costs import params_of
from compressor.training.numerics import seed_everything_

RESULTS = Path(__file__).parent / "results"
LEFT, ROUNDS = 0.5, 50


def main() -> None:
    parser = parser_of(__doc__, NETWORKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "real_costs.json")
    arguments = parser.parse_args()
    specs = dict(each.split("=", 1) for each in arguments.data)
    result = opened(arguments.out, {"left": LEFT, "rounds": ROUNDS}, arguments.device, torch.get_num_threads())
    peer = best_recipe(json.loads((RESULTS / "real-resnet20.json").read_text()))
    for name in arguments.networks:
        if name in {row["network"] for row in result["rows"]}:
            continue
        network = NETWORKS[name]
        case = case_of(network, specs[network.data], network.seeds[0], arguments)
        known = {row["arm"] for row in json.loads((RESULTS / f"real-{name}.json").read_text())["rows"]}
        modules: dict[str, nn.Module] = {}
        for arm in ("dense", "ours", "ours, widths for the chip", peer):
            if arm in known:
                seed_everything_(case.seed)
                modules[arm] = ARMS[arm](case, LEFT).model.eval()
        costs = timed(modules, case.example)
        result["rows"] += [{"network": name, "arm": arm} | each for arm, each in costs.items()]
        write_json(arguments.out, result)
        print(costs, file=sys.stderr, flush=True)


def timed(modules: dict[str, nn.Module], example: torch.Tensor) -> dict[str, dict[str, float]]:
    """MACs, parameters, bytes as .onnx and milliseconds of each, all in turn."""
    return {
        arm: {
            "macs": capture(modules[arm], example).macs(),
            "params": params_of(modules[arm]),
            "bytes": each.bytes,
            "ms": 1e3 * statistics.median(each.seconds),
        }
        for arm, each in in_turn(modules, example, ROUNDS).items()
    }


def table(result: dict[str, Any], accuracies: dict[str, Rows]) -> str:
    """Costs beside the accuracy that `benchmarks.real` measured, by network."""
    lines = [
        "| network | | top-1 as cut / fine-tuned, % | MACs | parameters | ONNX Runtime | file |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        left = 1.0 if row["arm"] == "dense" else result["left"]
        rows = [each for each in accuracies[row["network"]] if each["arm"] == row["arm"] and each["left"] == left]
        whole = next(each for each in result["rows"] if each["network"] == row["network"] and each["arm"] == "dense")
        lines.append(
            f"| {row['network']} | {row['arm']} | {measured(rows)} | {row['macs'] / 1e6:.1f} M | "
            f"{row['params'] / 1e6:.2f} M | {row['ms']:.2f} ms, {row['ms'] / whole['ms']:.2f}x | "
            f"{row['bytes'] / 1e6:.2f} MB |"
        )
    told = (
        f"One image, one thread, processor time, medians of {result['rounds']} rounds in turn; seed 0. "
        f"{result['machine']}, onnxruntime {result['versions']['onnxruntime']}, "
        f"Torch-Pruning {result['torch_pruning']}."
    )
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    main()
