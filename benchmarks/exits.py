"""Ways to train the exits of one network, beside each trained alone: CNSN's VGG-16 and a stranger's ResNet-20.

    python -m benchmarks.exits --data fashion-mnist:DIR
    python -m benchmarks.exits --network resnet20 --data folder:DIR --nets DIR --images 5000

The VGG-16 has a quarter of its width, random weights and two sub-models as CNSN's paper cuts them, the ResNet-20 its
published weights and the two sub-models of `compressor detach`. Every way has the same images, epochs and batches.
`sum` is the paper's equation 1. `kl` mixes each sub-model's loss with the divergence from the base's softened scores
(Hinton et al. 2015), which is `compressor detach --distill 0.5`, and `light` counts the sub-models' losses a fifth,
`--loss-weights 1,0.2,0.2`; `start`, for networks that come trained, mixes the
loss of all models with the divergence from what the network gave as it came. Writes benchmarks/results/exits.json, or
exits-NETWORK.json, row by row and goes on where it was broken off.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cnsn import AT, SCALES, _accuracies, _data
from benchmarks.real import NETWORKS
from benchmarks.resumable import opened
from compressor.exits.cutting import cut, model_costs
from compressor.exits.detachable import Detachable
from compressor.exits.learning import AtExit, multi_model_step
from compressor.exits.settings import CNSN, DetachSettings
from compressor.files.paths import write_json
from compressor.profiling.costs import profile
from compressor.training.data import Data
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.microbatches import Step
from compressor.training.numerics import seed_everything_
from compressor.training.settings import DataSettings
from sample_models.vgg16_cifar import build

RESULTS = Path(__file__).parent / "results"
SHARE, TEMPERATURE = 0.5, DetachSettings.distill_temperature  # of the distillation loss; of its softmax
LIGHT = 0.2  # weight of a sub-model's loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["vgg16", "resnet20"], default="vgg16")
    parser.add_argument("--nets", type=Path, help="folder with the published ResNets")
    parser.add_argument("--data", required=True)
    parser.add_argument("--ways", nargs="+", choices=["alone", *WAYS])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--width", type=float, default=SCALES["cpu"].width)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    paper = arguments.network == "vgg16"
    told = {"epochs": arguments.epochs, "images": arguments.images}
    told |= {"width": arguments.width} if paper else {"network": arguments.network}
    out = arguments.out or RESULTS / ("exits.json" if paper else f"exits-{arguments.network}.json")
    result = opened(out, told, "cpu", torch.get_num_threads())
    for seed in arguments.seeds:
        data = _data(arguments.data, replace(SCALES["cpu"], images=arguments.images), seed, _loading(arguments.network))
        for way in arguments.ways or [each for each in ("alone", *WAYS) if each != "start" or not paper]:
            if (way, seed) not in {(row["way"], row["seed"]) for row in result["rows"]}:
                row = measured(way, _detachable(arguments, data, seed), data, arguments.epochs, seed)
                result["rows"].append(row)
                write_json(out, result)
                print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(result))


def _loading(network: str) -> DataSettings:
    return replace(DataSettings() if network == "vgg16" else NETWORKS[network].loading, validation=0.1)


def _detachable(arguments: argparse.Namespace, data: Data, seed: int) -> Detachable:
    """The network with its sub-models, from the same weights for every way."""
    seed_everything_(seed)
    paper = arguments.network == "vgg16"
    base = (
        build(len(data.classes), data.input_shape[0], arguments.width)
        if paper
        else NETWORKS[arguments.network].open(arguments, data)
    )
    model, _ = cut(base, torch.zeros(1, *data.input_shape), DetachSettings(at=AT if paper else ()))
    assert isinstance(model, Detachable)
    return model


def measured(way: str, model: Detachable, data: Data, epochs: int, seed: int) -> dict[str, Any]:
    """Test top-1 of the base and every sub-model."""
    example = torch.zeros(1, *data.input_shape)
    training = replace(CNSN, epochs=epochs, seed=seed, device="cpu", evaluate_every=0)
    costs, start = [cost.macs for cost in model_costs(model, example, profile)], time.perf_counter()
    if way == "alone":
        learners = [copy.deepcopy(each) for each in model.learners()]
        for learner in learners:
            fit(learner, data, training)
        top1 = [evaluate(learner, data.test, data).top1 for learner in learners]
    else:
        fit(model, data, training, step=WAYS[way](data, model))
        top1 = _accuracies(model, data)
    seconds = round(time.perf_counter() - start, 1)
    return {"way": way, "seed": seed, "top1": top1, "macs": costs, "seconds": seconds}


def distilled(task: Data, model: Detachable, weight: float = 1.0) -> Step:
    """The base by its labels, the sub-models also by what the base gives for the same images."""
    weights = (1.0, *[weight] * model.exits)
    return multi_model_step(task, model.exits, DetachSettings(distill=SHARE, loss_weights=weights))


def from_start(task: Data, model: Detachable) -> Step:
    """All by their labels and by what the network gave as it came."""
    teacher = copy.deepcopy(model.detach(0)).eval().requires_grad_(False)

    def loss(way: AtExit, x: Tensor, y: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        own, right = task.loss(way, x, y, smoothing)
        return torch.lerp(own, task.imitation(way.gave, teacher(x), TEMPERATURE), SHARE), right

    return multi_model_step(SimpleNamespace(loss=loss), model.exits)


WAYS: dict[str, Callable[[Data, Detachable], Step]] = {
    "sum": lambda task, model: multi_model_step(task, model.exits),
    "kl": distilled,
    "light": partial(distilled, weight=LIGHT),
    "start": from_start,
}


def table(result: dict[str, Any]) -> str:
    """Means over seeds as Markdown: top-1 of each model, and how far it is from the same model trained alone."""
    rows = result["rows"]
    alone = {row["seed"]: row["top1"] for row in rows if row["way"] == "alone"}
    macs = " | ".join(f"{each / 1e6:.1f} M" for each in rows[0]["macs"])
    lines = [f"| way | {macs} | to alone, points, each seed | seeds |", f"|{'---|' * (len(rows[0]['macs']) + 3)}"]
    for way in ("alone", *WAYS):
        held = [row for row in rows if row["way"] == way]
        if not held:
            continue
        means = [f"{100 * statistics.mean(each):.2f}" for each in zip(*(row["top1"] for row in held), strict=True)]
        apart = ("/".join(f"{100 * (a - b):+.1f}" for a, b in zip(row["top1"], alone[row["seed"]])) for row in held)
        lines.append(f"| {way} | {' | '.join(means)} | {'; '.join(apart)} | {len(held)} |")
    which = result["network"] if "network" in result else f"width {result['width']:g}"
    words = f"{result['epochs']} epochs, {result['images']:,} images, {which}."
    return "\n".join((*lines, "", f"{words} {result['machine']}, torch {result['versions']['torch']}."))


if __name__ == "__main__":
    main()
