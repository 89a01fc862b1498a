"""What a refit is worth to those who have no images: the strangers' ResNets cut by l1 and mended in three ways.

    python -m benchmarks.without_data --nets DIR --data folder:DIR

As cut (all other weights stay); each removed filter folded into the kept one that is most like it, with or without the
means that batch norm tells (model folding); least squares on white noise, and on dead leaves, which is what
`compressor prune MODEL --target-macs SHARE` does without data. Every second test image judges; no other is looked at.
Writes benchmarks/results/without_data.json and goes on where it was broken off.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.real import NETWORKS
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.graph.tensors import named_tensors
from compressor.pruning.oneshot import decide
from compressor.pruning.reconstruction import calibration
from compressor.pruning.settings import PruneSettings
from compressor.runs.apply import apply_plan_
from compressor.surgery import Plan, Prune
from compressor.training.data import open_data
from compressor.training.evaluate import evaluate

OUT = Path(__file__).parent / "results" / "without_data.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--left", nargs="+", type=float, default=[0.7, 0.5])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.device = "cpu"
    result = opened(arguments.out, {"method": "l1", "allocate": "uniform"}, "cpu", torch.get_num_threads())
    done = {(row["network"], row["left"], row["way"]) for row in result["rows"]}
    for name in arguments.networks:
        data = open_data(arguments.data, NETWORKS[name].loading)
        data = replace(data, test=data.test.take(torch.arange(0, len(data.test), 2)))
        dense = NETWORKS[name].open(arguments, data).eval()
        for left, way in [(1.0, "dense"), *((left, way) for left in arguments.left for way in arguments.ways)]:
            if (name, left, way) in done:
                continue
            start = time.process_time()
            small = copy.deepcopy(dense) if way == "dense" else _cut(dense, left, way)
            seconds = time.process_time() - start
            row = {"network": name, "left": left, "way": way, "cut_cpu_seconds": round(seconds, 1)}
            row["top1"] = evaluate(small, data.test, data).top1
            result["rows"].append(row)
            write_json(arguments.out, result)
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(result))


def _cut(dense: nn.Module, left: float, way: str) -> nn.Module:
    model, example = copy.deepcopy(dense), torch.zeros(1, 3, 32, 32)
    channels = capture(model, example)
    plan = decide(model, channels, PruneSettings(method="l1", target_macs=left, round_to=1)).plan
    WAYS[way](model, channels, plan, example)
    return model


def _sliced(model: nn.Module, channels: Channels, plan: Plan, example: Tensor) -> None:
    apply_plan_(model, plan, channels, example)


def _nearest(model: nn.Module, channels: Channels, plan: Plan, example: Tensor, *, means: bool = False) -> None:
    dense = named_tensors(copy.deepcopy(model))
    edits = [_folded_(model, dense, channels, edit, means=means) for edit in plan.edits if isinstance(edit, Prune)]
    apply_plan_(model, replace(plan, edits=tuple(edits)), channels, example)


def _folded_(model: nn.Module, tensors: dict[str, Tensor], channels: Channels, edit: Prune, *, means: bool) -> Prune:
    """Fold each channel that goes into the kept one whose filters are nearest; returns the edit that removes it.

    What a ReLU lets through of it is taken for a share of that one. Filters are scaled as batch norm scales their
    outputs; those of all layers that make a channel count together.
    """
    own_tensors, group = named_tensors(model), channels.group(edit.group)
    filters: list[Tensor] = []
    mean = torch.zeros(group.size)
    for place in group.places:
        norm, _, kind = place.tensor.rpartition(".")
        if place.role == "row" and kind == "running_mean":
            layer = f"{norm.replace('bn', 'conv')}.weight"
            own = next(each for each in group.places if each.tensor == layer and each.role == "row")
            at, rows = (torch.from_numpy(channels.positions(each, group.ids)[:, 0]) for each in (place, own))
            scale, shift = (tensors[f"{norm}.{part}"].detach()[at] for part in ("weight", "bias"))
            filters.append(nn.functional.normalize(tensors[layer].detach()[rows].flatten(1), dim=1) * scale[:, None])
            normal, size = torch.distributions.Normal(0.0, 1.0), scale.abs().clamp(min=1e-6)
            mean += shift * normal.cdf(shift / size) + size * normal.log_prob(shift / size).exp()
    vectors, ids = torch.cat(filters, 1), group.ids.tolist()
    gone = [ids.index(each) for each in edit.channels]
    kept = [at for at in range(group.size) if at not in set(gone)]
    near = nn.functional.cosine_similarity(vectors[gone][:, None], vectors[kept][None], dim=2).argmax(1)
    share = (vectors[gone] * vectors[kept][near]).sum(1) / vectors[kept][near].square().sum(1)
    shares = torch.zeros(len(kept), len(gone))
    shares[near, torch.arange(len(gone))] = share.clamp(min=0)
    over = mean[gone] - shares.T @ mean[kept] if means else torch.zeros(len(gone))
    for place in group.places:
        if place.role == "column":
            where = torch.from_numpy(channels.positions(place, group.ids))  # (channels, columns of each)
            weight = own_tensors[place.tensor].data.movedim(place.dim, 0)
            for column in where.T:
                weight[column[kept]] += torch.tensordot(shares, weight[column[gone]], dims=1)
    return replace(edit, means=tuple(over.tolist()))


def _leaves(model: nn.Module, channels: Channels, plan: Plan, example: Tensor) -> None:
    apply_plan_(model, plan, channels, example, inputs="synthetic")


def _noise(model: nn.Module, channels: Channels, plan: Plan, example: Tensor) -> None:
    def noise(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    with mock.patch.object(calibration, "dead_leaves", noise):
        _leaves(model, channels, plan, example)


WAYS: dict[str, Callable[[nn.Module, Channels, Plan, Tensor], None]] = {
    "as cut": _sliced,
    "nearest filter": _nearest,
    "nearest filter and means": partial(_nearest, means=True),
    "least squares on white noise": _noise,
    "least squares on dead leaves": _leaves,
}


def table(result: dict[str, object]) -> str:
    """The result as Markdown: test top-1 in per cent."""
    rows = result["rows"]
    assert isinstance(rows, list)
    heads = list(dict.fromkeys((row["network"], row["left"]) for row in rows if row["way"] != "dense"))
    dense = {row["network"]: row["top1"] for row in rows if row["way"] == "dense"}
    lines = [
        "| | " + " | ".join(f"{name} ({100 * dense[name]:.1f}) at {left:.0%}" for name, left in heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for way in dict.fromkeys(row["way"] for row in rows if row["way"] != "dense"):
        found = {(row["network"], row["left"]): row["top1"] for row in rows if row["way"] == way}
        lines.append(f"| {way} | " + " | ".join(f"{100 * found[h]:.1f}" if h in found else "" for h in heads) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
