"""AdapNet, its controls and variants of it against one-shot pruning with least squares, from the same trained network.

    python -m benchmarks.adapnet_variants --nets DIR --data cifar10-jpeg=folder:DIR \\
        --data fashion-mnist=fashion-mnist:DIR [--data imagenette=folder:DIR --lite0 FILE]

A quarter-width VGG-11 of our own and the published networks of `benchmarks/real.py`. Every arm has the same start
weights, images, epochs, batches, learning rate, distillation and least squares; only "its own rates" trains as the
preset says. The test set is looked at once a cell. Writes benchmarks/results/adapnet-variants-NETWORK.json cell by cell
and goes on where it was broken off.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import real
from benchmarks.adapnet_arms import ARMS, LOOKED_AT
from benchmarks.adapnet_show import table
from benchmarks.adapnet_small import subset
from benchmarks.real import RESULTS, case_of
from benchmarks.real_arms import Case
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.graph import capture
from compressor.training.data import Data, open_data
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import choose_device, seed_everything_
from compressor.training.settings import DistillSettings, TrainSettings
from sample_models import vgg11

_BATCH = 64


def _vgg11(arguments: argparse.Namespace, data: Data) -> nn.Module:
    return copy.deepcopy(_trained_vgg11(data.name, arguments.device))


@cache
def _trained_vgg11(spec: str, device: str) -> nn.Module:
    """Trained here for four epochs on 10,000 images."""
    data = subset(open_data(spec), 10_000, 0)
    seed_everything_(0)
    model = vgg11.build(len(data.classes), data.input_shape[0], width=0.25).to(choose_device(device))
    fit(model, data, TrainSettings(epochs=4, batch_size=64, device=device, evaluate_every=0))
    return model


NETWORKS = {
    "vgg11": replace(real.NETWORKS["vgg11"], open=_vgg11, images=2000),
    "resnet20": replace(real.NETWORKS["resnet20"], images=2000),
    "resnet56": replace(real.NETWORKS["resnet56"], images=2000),
    "efficientnet_lite0": real.NETWORKS["efficientnet_lite0"],
}


@dataclass(frozen=True)
class Distilled(Case):
    """A case in which every arm trains in smaller batches."""

    @property
    def training(self) -> TrainSettings:
        """Of every arm."""
        return replace(super().training, batch_size=_BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, help="folder with the published ResNets")
    parser.add_argument("--lite0", type=Path, help="the published weights of EfficientNet-Lite0")
    parser.add_argument("--data", action="append", metavar="NAME=SPEC", required=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--left", nargs="+", type=float, default=[0.3, 0.5, 0.15])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    specs = dict(each.split("=", 1) for each in arguments.data)
    for name in arguments.networks:
        network = NETWORKS[name]
        told = {
            "network": name, "data": network.data, "train_images": network.images, "epochs": arguments.epochs,
            "batch_size": _BATCH, "looked_at": LOOKED_AT, "distillation": True,
        }  # fmt: skip
        out = arguments.out / f"adapnet-variants-{name}.json"
        result = opened(out, told, arguments.device, torch.get_num_threads())
        for seed in arguments.seeds:
            case = case_of(network, specs[network.data], seed, arguments)
            case = Distilled(**vars(case) | {"distill": DistillSettings(distill=True)})
            for left in arguments.left:
                for arm in arguments.arms:
                    if any((row["seed"], row["arm"], row["left"]) == (seed, arm, left) for row in result["rows"]):
                        continue
                    row = {"seed": seed, "arm": arm, "left": left} | _cell(case, arm, left)
                    result["rows"].append(row)
                    write_json(out, result)
                    print(json.dumps(row), file=sys.stderr, flush=True)
        print(table(result), end="\n\n")


def _cell(case: Case, arm: str, left: float) -> dict[str, Any]:
    seed_everything_(case.seed)
    wall, processor = time.perf_counter(), time.process_time()
    outcome = ARMS[arm](case, left)
    model, data = outcome.model, case.data
    seconds = time.perf_counter() - wall, time.process_time() - processor
    return {
        "macs_left": capture(model, case.example).macs() / capture(case.start, case.example).macs(),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "validation_top1": evaluate(model, data.validation, data).top1,
        "top1": evaluate(model, data.test, data).top1,
        "seconds": round(seconds[0], 1),
        "cpu_seconds": round(seconds[1], 1),
        **outcome.facts,
    }


if __name__ == "__main__":
    main()
