"""A network that is too narrow in places: what AdapNet and error curves make of it at equal multiply-adds.

    python -m benchmarks.growth --nets DIR --data cifar10-jpeg=folder:DIR

Two blocks of the published ResNet-20 are halved: half of their inner channels are cut away by l1, and nothing makes up
for it. From there every arm trains the same epochs on the same images, with the whole network as teacher, and ends at
the halved network's multiply-adds: as it is; with a tenth of them taken elsewhere by block OBS and given to layers
where the error curves say that width is missing; with AdapNet's insertions for two epochs, and block OBS bringing it
back. Beside them the whole network, cut to as many multiply-adds, the same share of every layer or by the curves. The
test set is looked at once a cell. Writes benchmarks/results/growth.json cell by cell and goes on where it was broken
off.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.adapnet_arms import SHORT, Adaptive, Rounds
from benchmarks.adapnet_variants import NETWORKS, Distilled
from benchmarks.real import RESULTS, case_of
from benchmarks.real_arms import Case, Outcome
from benchmarks.resumable import opened
from compressor import prune_
from compressor.files.paths import write_json
from compressor.graph import capture
from compressor.pruning.oneshot import decide
from compressor.pruning.settings import PruneSettings
from compressor.report.units import counted
from compressor.surgery import operate_
from compressor.training.evaluate import evaluate
from compressor.training.loop import distilling
from compressor.training.microbatches import Step
from compressor.training.numerics import seed_everything_
from compressor.training.settings import DistillSettings

NARROW = ("layer2.1.conv1", "layer3.1.conv1")
OUT = RESULTS / "growth.json"


@dataclass(frozen=True)
class Taught(Distilled):
    """A case whose start is not its teacher."""

    teacher: nn.Module = field(kw_only=True)

    def step(self) -> Step:
        """What one batch does: the teacher's scores beside the labels."""
        return distilling(copy.deepcopy(self.teacher), self.distill, self.data)


def narrowed(case: Case) -> nn.Module:
    """The network with two blocks halved."""
    model = copy.deepcopy(case.start)
    channels = capture(model, case.example)
    choice = PruneSettings(method="l1", ratio=0.0, ratio_for=tuple((name, 0.5) for name in NARROW), round_to=1)
    operate_(model, decide(model, channels, choice).plan, channels)
    return model


def _uniform(case: Case, share: float) -> Outcome:
    model = copy.deepcopy(case.start)
    inputs = case.inputs()
    prune_(model, case.example, "l1", target_macs=share, allocate="uniform", round_to=1, data=inputs)
    case.train_(model, case.epochs)
    return Outcome(model, case.epochs)


_INSERTS = Adaptive(replace(SHORT, max_width=2.0, prune_cap=0.0, merge=False))
# Of each: from the halved network, or the whole one.
ARMS: dict[str, tuple[bool, Callable[[Case, float], Outcome]]] = {
    "halved, as it is": (True, Rounds()),
    "halved, grown by the curves": (True, Rounds(grow=0.1)),
    "halved, grown by the curves after an epoch": (True, Rounds(grow=0.1, first=1.0, last=1.0)),
    "halved, AdapNet inserts": (True, _INSERTS),
    "whole, the same share of every layer": (False, _uniform),
    "whole, by the curves": (False, Rounds()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, help="folder with the published ResNets")
    parser.add_argument("--data", metavar="NAME=SPEC", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    network, spec = NETWORKS["resnet20"], arguments.data.partition("=")[2]
    told = {"network": "resnet20", "data": network.data, "train_images": network.images, "epochs": arguments.epochs}
    result = opened(arguments.out, told, arguments.device, torch.get_num_threads())
    for seed in arguments.seeds:
        came = case_of(network, spec, seed, arguments)
        distill = DistillSettings(distill=True)
        whole = Taught(**vars(came) | {"distill": distill}, teacher=came.start)
        halved = replace(whole, start=narrowed(came))
        macs = {True: capture(halved.start, halved.example).macs(), False: capture(came.start, came.example).macs()}
        for arm, (narrow, make) in ARMS.items():
            if any((row["seed"], row["arm"]) == (seed, arm) for row in result["rows"]):
                continue
            seed_everything_(seed)
            began = time.process_time()
            outcome = make(halved if narrow else whole, macs[True] / macs[narrow])
            spent = time.process_time() - began
            row = {
                "seed": seed, "arm": arm, "macs_left": capture(outcome.model, came.example).macs() / macs[False],
                "top1": evaluate(outcome.model, came.data.test, came.data).top1, "cpu_seconds": round(spent, 1),
                **outcome.facts,
            }  # fmt: skip
            result["rows"].append(row)
            write_json(arguments.out, result)
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """Means over the seeds, and what became of the widths that were halved."""
    rows = result["rows"]
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"{result['network']} on {result['data']}: {result['train_images']:,} training images, {result['epochs']} "
        f"epochs, {counted(seeds, 'seed')}; {result['machine']}, torch {result['versions']['torch']}.",
        "",
        f"| | MACs left | top-1 | {' | '.join(NARROW)} | inserted |",
        "|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        widths = [_counts([row.get("widths", {}).get(name) for row in own]) for name in NARROW]
        inserted = _counts([row.get("edits", {}).get("insert", row.get("inserted", 0)) for row in own])
        top1 = [100 * row["top1"] for row in own]
        spread = f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        left, mean = statistics.mean(row["macs_left"] for row in own), statistics.mean(top1)
        lines.append(f"| {arm} | {left:.0%} | {mean:.1f}{spread} | {' | '.join(widths)} | {inserted} |")
    return "\n".join(lines)


def _counts(values: list[int | None]) -> str:
    """Of every seed."""
    return ", ".join(str(value) for value in values if value is not None)


if __name__ == "__main__":
    main()
