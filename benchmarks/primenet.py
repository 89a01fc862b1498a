"""PrimeNet's own network against the paper's errors, and against the same network trained end to end.

    python -m benchmarks.primenet --scale cpu --data mnist=mnist:DIR --data fashion-mnist=fashion-mnist:DIR
    python -m benchmarks.primenet --scale paper --seeds 0 1 2 --data mnist=mnist:DIR --data cifar10=cifar10:DIR
    python -m benchmarks.primenet --scale paper --data cifar10-jpeg=folder:DIR

`paper` is the paper's budget, 100 + 50 epochs of all images, for a GPU; `cpu` takes some minutes on one core, with
fewer images and filters. Writes benchmarks/results/primenet-SCALE.json, adding to what stands there.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.where import machines
from compressor.primenet.learning import best_scale, local_losses, training_memory
from compressor.primenet.network import PrimeNetwork
from compressor.primenet.phases import represent_, retrain_
from compressor.primenet.settings import REPRESENTATION
from compressor.profiling.costs import profile
from compressor.report.environment import device_words, versions
from compressor.training.data import Data, open_data
from compressor.training.evaluate import evaluate
from compressor.training.events import EpochEvent, Event
from compressor.training.loop import fit
from compressor.training.numerics import choose_device, generator
from compressor.training.settings import DataSettings, TrainSettings
from sample_models.primenet import build

RESULTS = Path(__file__).parent / "results"
# Table 2 of the paper, top-1 error in per cent; Table 3 for parameters and operations.
PAPER_ERROR = {"mnist": 0.58, "cifar10": 6.21, "svhn": 1.71}
PAPER_PARAMS, PAPER_FLOPS = 0.41e6, 2.7e6


@dataclass(frozen=True)
class Scale:
    """A budget."""

    images: int | None  # of the training set; None: all
    width: float
    epochs: int
    retrain_epochs: int
    batch_size: int
    retrain_batch_size: int
    lr: float  # of every optimizer


SCALES = {
    "smoke": Scale(200, 0.125, 1, 1, 20, 20, 1e-3),
    "cpu": Scale(15_000, 0.25, 4, 2, 50, 50, 3e-3),
    "paper": Scale(None, 1.0, 100, 50, 200, 32, 2e-4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=SPEC", required=True)
    parser.add_argument("--images", type=int, help="of each training set, in place of the scale's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"primenet-{arguments.scale}.json"
    scale = SCALES[arguments.scale]
    if arguments.images is not None:
        scale = replace(scale, images=arguments.images)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    results |= {
        "benchmark": "primenet",
        "scale": arguments.scale,
        "paper": {"error_percent": PAPER_ERROR, "params": PAPER_PARAMS, "flops": PAPER_FLOPS},
    }
    for entry in arguments.data:
        name, _, spec = entry.partition("=")
        for seed in arguments.seeds:
            row = measure(name, spec, scale, seed, arguments.device)
            results["rows"] = [*(each for each in results["rows"] if _place(each) != _place(row)), row]
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print(f"\n{out}")


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of: another one of the same takes its place."""
    return row["data"], row["seed"], *row["budget"].values()


def measure(name: str, spec: str, scale: Scale, seed: int, device: str) -> dict[str, Any]:
    """One data set and seed: PrimeNet in its two phases, then the network that came out, anew and end to end."""
    data = _data(spec, scale, seed)
    training = replace(
        REPRESENTATION, epochs=scale.epochs, batch_size=scale.batch_size, lr=scale.lr, seed=seed, device=device
    )
    start = time.perf_counter()
    network = _build(data, scale, seed)
    rows = represent_(network, data, training, on_event=_show)
    losses = local_losses(network, data.validation, data)
    kept = best_scale(losses)
    first = time.perf_counter() - start
    errors = {}
    surest = copy.deepcopy(network)
    surest.stage.block.settle_(network.stage.block.scales)
    errors["entropy, first phase only"] = _error(surest, data)
    network.stage.block.settle_((kept,))
    errors["static, first phase only"] = _error(network, data)
    for retrain in ("head", "rest"):
        one = copy.deepcopy(network)
        one.settings = replace(one.settings, retrain=retrain)
        start = time.perf_counter()
        retrain_(one, data, training, on_event=_show)
        second = time.perf_counter() - start
        errors[f"static, {retrain} retrained"] = _error(one, data)
    start = time.perf_counter()
    errors["end to end"] = _error(_end_to_end(data, scale, seed, kept, training), data)
    return {
        "data": name,
        "seed": seed,
        "budget": asdict(scale),
        "train_images": len(data.train),
        "test_images": len(data.test),
        "error_percent": errors,
        "local_losses": losses,
        "kept": kept,
        "chosen_in_last_epoch": rows[-1]["chosen"],
        "seconds": {"first phase": first, "second phase": second, "end to end": time.perf_counter() - start},
        "cost": costs(data.input_shape, len(data.classes)),
        "training_memory": _memory(data, scale, device),
        "machine": device_words(choose_device(device)),
        "versions": versions(),
    }


def _data(spec: str, scale: Scale, seed: int) -> Data:
    """The data set with the paper's scaling, x / 127.5 - 1, and as many training images as the scale allows."""
    data = open_data(spec, DataSettings(mean=(0.5,), std=(0.5,)))
    if scale.images is None or scale.images >= len(data.train):
        return data
    order = torch.randperm(len(data.train), generator=generator(torch.device("cpu"), seed, "subset"))
    return replace(data, train=data.train.take(order[: scale.images]))


def _build(data: Data, scale: Scale, seed: int, width: float | None = None) -> PrimeNetwork:
    torch.manual_seed(seed)
    channels, size, _ = data.input_shape
    network = build(len(data.classes), channels, width or scale.width, size, retrain_epochs=scale.retrain_epochs)
    network.settings = replace(network.settings, local_lr=scale.lr, retrain_batch_size=scale.retrain_batch_size)
    return network


def _end_to_end(data: Data, scale: Scale, seed: int, kept: int, training: TrainSettings) -> PrimeNetwork:
    """The static network from random weights with the loss of the network alone: as many epochs, the same batches."""
    network = _build(data, scale, seed)
    network.stage.block.settle_((kept,))
    fit(network, data, training, on_event=_show)
    second = replace(
        training, first_epoch=scale.epochs, epochs=scale.retrain_epochs, batch_size=scale.retrain_batch_size
    )
    fit(network, data, second, on_event=_show)
    return network


def _memory(data: Data, scale: Scale, device: str) -> dict[str, Any]:
    """Of the paper's network at its full width, for one batch of the scale."""
    place = choose_device(device)
    network = _build(data, scale, 0, width=1.0).to(place)
    x = torch.randn(scale.batch_size, *data.input_shape, device=place)
    y = torch.arange(scale.batch_size, device=place) % len(data.classes)
    return asdict(training_memory(network, x, y))


def costs(image: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Parameters and multiply-adds of the paper's network at its full width, with one scale and with all three."""
    found = {}
    for kept in ((3,), (5,), (7,), (3, 5, 7)):
        network = build(classes, image[0], size=image[1])
        network.stage.block.settle_(kept)
        cost = profile(network, torch.zeros(1, *image), layers=False)
        found["+".join(map(str, kept))] = {"params": cost.params, "macs": cost.macs}
    return found


def _error(network: PrimeNetwork, data: Data) -> float:
    return 100 * (1 - evaluate(network, data.test, data).top1)


def _show(event: Event) -> None:
    if isinstance(event, EpochEvent):
        row = event.row
        texts = (f"{row.get('phase')} {row['epoch']}", f"{row['train_loss']:.4f}", f"{row['validation_top1']:.4f}")
        print(*texts, f"{row['images_per_second']:.0f}/s", row.get("chosen", ""), file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """Test errors beside the paper's, and the memory of a training step, as Markdown."""
    lines = [
        "| data, seed | images, epochs, width, rate | paper | rest retrained | head retrained | before that | entropy "
        "| end to end | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        error, paper = row["error_percent"], results["paper"]["error_percent"].get(row["data"].partition("-jpeg")[0])
        budget = row["budget"]
        epochs = f"{budget['epochs']} + {budget['retrain_epochs']}"
        spent = f"{row['train_images']:,}, {epochs}, {budget['width']:g}, {budget['lr']:g}"
        cells = [f"{row['data']}, {row['seed']}", spent, "–" if paper is None else f"{paper:.2f}"]
        names = ("static, rest retrained", "static, head retrained", "static, first phase only")
        cells += [f"{error[name]:.2f}" for name in (*names, "entropy, first phase only", "end to end")]
        lines.append(f"| {' | '.join((*cells, '{0}x{0}'.format(row['kept'])))} |")
    last = results["rows"][-1]
    return "\n".join((*lines, "", _memory_table(last["training_memory"]), "", machines(results["rows"])))


def _memory_table(memory: dict[str, Any]) -> str:
    plain = max(memory["plain"].values())
    rows = {
        "local losses, one scale after the other": memory["local"],
        "the same losses, one backward pass at the end": memory["joint"],
        "one scale alone, end to end": plain,
    }
    head = f"| training step of {memory['batch']} images at full width | activations and gradients, peak |"
    return "\n".join((head, "|---|---|", *(f"| {name} | {held / 1e6:.0f} MB |" for name, held in rows.items())))


if __name__ == "__main__":
    main()
