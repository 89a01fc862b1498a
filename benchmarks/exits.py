"""Ways to train the exits of one network, beside each trained alone: CNSN's VGG-16 and a stranger's ResNet-20.

    python -m benchmarks.exits --data fashion-mnist:DIR
    python -m benchmarks.exits --network resnet20 --data folder:DIR --nets DIR --images 5000

The VGG-16 has a quarter of its width, random weights and two sub-models as CNSN's paper cuts them, the ResNet-20 its
published weights and the two sub-models of `compressor detach`. Every way has the same images, epochs and batches.
`sum` is the paper's equation 1. `kl` mixes each sub-model's loss with the divergence from the base's softened
scores (Hinton et al. 2015), `feature` with that and the distance of its last feature vector from the base's (FitNets,
Romero et al. 2015), `balance` scales each sub-model's gradient to the norm of the base's on the layers they share,
`sandwich` trains the base and one sub-model drawn at random in every step (Yu and Huang 2019), distilled like `kl`.
Writes benchmarks/results/exits.json, or exits-NETWORK.json, row by row and goes on where it was broken off.
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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cnsn import AT, SCALES, _accuracies, _data
from benchmarks.real import NETWORKS
from benchmarks.resumable import opened
from compressor.exits.cutting import cut, model_costs
from compressor.exits.detachable import Detachable
from compressor.exits.learning import multi_model_step
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
SHARE, TEMPERATURE, HINT = 0.5, 4.0, 1.0  # of the distillation loss; of its softmax; weight of the feature distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["vgg16", "resnet20"], default="vgg16")
    parser.add_argument("--nets", type=Path, help="folder with the published ResNets")
    parser.add_argument("--data", required=True)
    parser.add_argument("--ways", nargs="+", choices=["alone", *WAYS], default=["alone", *WAYS])
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
        for way in arguments.ways:
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


def distilled(task: Data, model: Detachable, hint: float = 0.0, sandwich: bool = False) -> Step:
    """The base by its labels, the sub-models also by the base's scores and, with `hint`, its last features."""

    def step(_: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        loss, correct, scores, features = _at(model, 0, x, y, task)
        loss.backward()
        total, scores, features = loss.detach(), scores.detach(), features.detach()
        exits = [1 + int(torch.randint(model.exits, ()))] if sandwich else range(1, model.exits + 1)
        for exit in exits:
            loss, _, given, seen = _at(model, exit, x, y, task)
            loss = torch.lerp(loss, task.imitation(given, scores, TEMPERATURE), SHARE)
            loss = loss + hint * functional.mse_loss(seen, features) / features.var().clamp_min(1e-6)
            loss.backward()
            total = total + loss.detach()
        return total, correct

    return step


def balanced(task: Data, model: Detachable) -> Step:
    """Each sub-model's gradient gets the norm of the base's on the parameters that they share."""
    shared = list(model.base.parameters())

    def norm(gradients: list[Tensor | None], mask: list[bool]) -> Tensor:
        held = [each for each, taken in zip(gradients, mask, strict=True) if taken and each is not None]
        return torch.stack([each.square().sum() for each in held]).sum().sqrt()

    def step(_: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        total, correct, of_base = torch.zeros(()), None, None
        for exit in range(model.exits + 1):
            loss, counted, _, _ = _at(model, exit, x, y, task)
            own = [each for each in model.detach(exit).parameters() if all(each is not one for one in shared)]
            found = list(torch.autograd.grad(loss, [*shared, *own], allow_unused=True))
            if of_base is None:
                correct, of_base = counted, found
            mask = [each is not None for each in found[: len(shared)]]
            factor = norm(of_base[: len(shared)], mask) / norm(found[: len(shared)], mask).clamp_min(1e-12)
            for number, (parameter, gradient) in enumerate(zip([*shared, *own], found, strict=True)):
                if gradient is not None:
                    scaled = gradient * factor if number < len(shared) else gradient
                    parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled
            total = total + loss.detach()
        return total, correct

    return step


def _at(model: Detachable, exit: int, x: Tensor, y: Tensor, task: Data) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Loss, right answers, scores and last features of one model."""
    module, seen = model.detach(exit), {}
    last = [each for each in module.modules() if isinstance(each, nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.update(features=inputs[0]))

    def called(*inputs: Any) -> Tensor:
        seen["scores"] = module(*inputs)
        return seen["scores"]

    loss, correct = task.loss(called, x, y)
    hook.remove()
    return loss, correct, seen["scores"], seen["features"]


WAYS: dict[str, Callable[[Data, Detachable], Step]] = {
    "sum": lambda task, model: multi_model_step(task, model.exits),
    "kl": distilled,
    "feature": partial(distilled, hint=HINT),
    "balance": balanced,
    "sandwich": partial(distilled, sandwich=True),
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
