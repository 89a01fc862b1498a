"""Layer-skip routing on a published network: the ResNet-20 of `benchmarks/real.py`, beside it whole and pruned.

    python -m benchmarks.routing_published --nets DIR --data cifar10-jpeg=folder:DIR --epochs 2 --seeds 0 1
    python -m benchmarks.routing_published --nets DIR --data cifar10-jpeg=folder:DIR --epochs 8

Start weights, images and learning rate are those of `benchmarks/real.py`. From the same weights and for as many epochs
the whole network is trained, the network with exits and a router (`compressor route`), and the network pruned to half
of its multiply-adds ("ours" there). For each share of the multiply-adds the threshold of the router, and of early exit
by confidence on the same network, is chosen on validation images; the test set is looked at once for each figure.
Writes benchmarks/results/routing-NETWORK.json row by row and goes on where it was broken off.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks import real
from benchmarks.real_arms import ARMS, Case
from benchmarks.resumable import opened
from benchmarks.routing import _latency
from compressor.errors import UsageError
from compressor.files.paths import write_json
from compressor.routing.curve import (
    Costs,
    Point,
    choose,
    costs,
    early_exit_at,
    early_exit_points,
    fixed_points,
    point_at,
    routed_points,
)
from compressor.routing.network import Routed, make_routed, survey
from compressor.routing.observing import Observation, observe
from compressor.routing.phases import Teacher
from compressor.routing.settings import RouteSettings
from compressor.training.evaluate import evaluate
from compressor.training.numerics import seed_everything_

LEFTS = (0.9, 0.7, 0.5, 0.3)  # shares of the multiply-adds that thresholds are chosen for
HALF, TIMED_IMAGES = 0.5, 200  # the share at which the network is pruned, and single images are timed
RULES: dict[str, tuple[Callable[..., list[Point]], Callable[..., Point]]] = {
    "router": (routed_points, point_at),
    "early exit": (early_exit_points, early_exit_at),
}


def main() -> None:
    parser = real.parser_of(__doc__, ["resnet20", "resnet56"])
    parser.set_defaults(networks=["resnet20"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    specs = dict(each.split("=", 1) for each in arguments.data)
    for name in arguments.networks:
        network, out = real.NETWORKS[name], real.RESULTS / f"routing-{name}.json"
        told = {"network": name, "data": network.data, "train_images": network.images}
        result = opened(out, told, arguments.device, torch.get_num_threads())
        for epochs, seed in ((epochs, seed) for epochs in arguments.epochs for seed in arguments.seeds):
            if (epochs, seed) not in {(row["epochs"], row["seed"]) for row in result["rows"]}:
                case = replace(real.case_of(network, specs[network.data], seed, arguments), epochs=epochs)
                result["rows"].append({"epochs": epochs, "seed": seed} | measured(case))
                write_json(out, result)
                print(json.dumps(result["rows"][-1]), file=sys.stderr, flush=True)
        print(table(result))


def measured(case: Case) -> dict[str, Any]:
    """The network whole, routed and pruned, all trained for as long, and each rule at shares of the multiply-adds."""
    began, data = time.process_time(), case.data
    seed_everything_(case.seed)
    whole = copy.deepcopy(case.start)
    case.train_(whole, case.epochs)
    pruned = ARMS["ours"](case, HALF).model
    case.train_(pruned, case.epochs)
    routed, calibration, labels = _routed(case)
    counted = costs(routed)
    seen, test = observe(routed, calibration, data), observe(routed, data.test, data)
    at = {f"{left:g}": _at(left, seen, test, counted) for left in LEFTS}
    routed.set_threshold_(half := choose(routed_points(seen, counted), counted, target_macs=HALF).setting)
    return {
        "whole": {"macs": counted.whole, "top1": evaluate(whole, data.test, data).top1},
        "as_it_came_top1": evaluate(case.start, data.test, data).top1,
        "pruned_top1": evaluate(pruned, data.test, data).top1,
        "leave_after": list(routed.layout.leave_after),
        "labels": labels,
        "costs": asdict(counted),
        "fixed": [asdict(point) for point in fixed_points(test, counted)],
        "at": at,
        "latency_ms": _latency(whole, routed, point_at(seen, counted, half), data, TIMED_IMAGES),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _routed(case: Case) -> tuple[Routed, Any, list[int]]:
    """The network with exits and a router, validation images that no router learnt from, and images by label."""
    start, settings = copy.deepcopy(case.start), RouteSettings()
    chain, found = survey(start, tuple(case.example.shape[1:]))
    routed = make_routed(chain, found.units, settings)
    taught = Teacher(start, routed, case.data, replace(case.training, schedule="cosine"), settings).teach()
    return routed, taught.calibration, list(taught.labels.counts)


def _at(left: float, seen: Observation, test: Observation, counted: Costs) -> dict[str, Any]:
    """The test figures of both rules with thresholds that keep a share of the multiply-adds on validation images."""
    row: dict[str, Any] = {}
    for name, (points, at) in RULES.items():
        try:
            chosen = choose(points(seen, counted), counted, target_macs=left)
        except UsageError:  # the first exit costs more
            row[name] = None
        else:
            row[name] = asdict(at(test, counted, chosen.setting))
    return row


def table(result: dict[str, Any]) -> str:
    """Test top-1 in per cent at shares of the multiply-adds: routed, by confidence, and pruned."""
    rows = result["rows"]
    lefts = [*rows[0]["at"]]
    lines = [
        f"| epochs | | 100% | {' | '.join(f'{float(left):.0%}' for left in lefts)} | one image |",
        "|---" * (len(lefts) + 4) + "|",
    ]
    groups = {row["epochs"]: [each for each in rows if each["epochs"] == row["epochs"]] for row in rows}
    for epochs, group in groups.items():
        lines += _lines(epochs, group, lefts)
    fixed = "; ".join(f"{_fixed(group)} after {epochs} epochs" for epochs, group in groups.items())
    seeds = ", ".join(f"{len(group)} of {epochs} epochs" for epochs, group in groups.items())
    words = (
        f"{result['network']} on {result['data']}, {_spread([rows[0]['as_it_came_top1']])} as it came; in brackets the "
        f"share of the MACs that the test images took. Every image at the same exit: {fixed}. One image: mean of "
        f"{TIMED_IMAGES} in ONNX Runtime, routed at {HALF:.0%}. {result['train_images']:,} training images; runs: "
        f"{seeds}. {result['machine']}."
    )
    return "\n".join([*lines, "", words])


def _fixed(rows: list[dict[str, Any]]) -> str:
    depths = zip(*(row["fixed"][:-1] for row in rows), strict=True)
    return ", ".join(_cell(list(points), rows[0]["whole"]["macs"]) for points in depths)


def _lines(epochs: int, rows: list[dict[str, Any]], lefts: list[str]) -> list[str]:
    macs = rows[0]["whole"]["macs"]
    times = [row["latency_ms"]["onnxruntime"] for row in rows]
    dense, routed = (statistics.mean(each[name]["mean"] for each in times) for name in ("unrouted", "chosen"))
    whole = _spread([row["whole"]["top1"] for row in rows])
    lines = [_line(epochs, "whole", whole, [""] * len(lefts), f"{dense:.2f} ms")]
    for rule in RULES:
        cells = [_cell([row["at"][left][rule] for row in rows], macs) for left in lefts]
        timed = f"{routed:.2f} ms, {routed / dense:.2f}x" if rule == "router" else ""
        last = _spread([row["fixed"][-1]["top1"] for row in rows])
        lines.append(_line(epochs, rule, last, cells, timed))
    cells = [_spread([row["pruned_top1"] for row in rows]) if float(left) == HALF else "" for left in lefts]
    return [*lines, _line(epochs, "pruned, obs and least squares", "", cells, "")]


def _line(epochs: int, way: str, whole: str, cells: list[str], timed: str) -> str:
    return f"| {epochs} | {way} | {whole} | {' | '.join(cells)} | {timed} |"


def _cell(points: list[dict[str, Any] | None], macs: int) -> str:
    """Top-1, and the share of the multiply-adds that the test images took."""
    held = [point for point in points if point is not None]
    if len(held) < len(points):
        return "–"
    share = statistics.mean(point["macs"] for point in held) / macs
    return f"{_spread([point['top1'] for point in held])} ({share:.0%})"


def _spread(values: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    return f"{text} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else text


if __name__ == "__main__":
    main()
