"""CNSN on a VGG-16 for small images with two sub-models, beside the paper's Table 1 and the same network alone.

    python -m benchmarks.cnsn --scale cpu --data fashion-mnist=fashion-mnist:DIR
    python -m benchmarks.cnsn --scale paper --data cifar10=cifar10:DIR --alone all --seeds 0 1 2
    python -m benchmarks.cnsn --scale paper --data cifar10-jpeg=folder:DIR

`paper` is the paper's network and budget, 300 epochs, for a GPU; `cpu` is a quarter of its width on part of the images
for some twelve minutes of one free core. `--bn stats shared` compares what batch norm shares; shared statistics are
also measured with every model's own, taken anew after training. The paper reports the best test accuracy of all
epochs; ours is that of the last epoch, and nothing looks at the test set before. Writes
benchmarks/results/cnsn-SCALE.json, adding to what stands there.
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
from compressor.exits.cutting import cut, model_costs
from compressor.exits.detachable import Detachable
from compressor.exits.learning import recalibrated, training_of
from compressor.exits.settings import CNSN, DetachSettings, falling
from compressor.profiling.costs import profile
from compressor.report.environment import device_words, versions
from compressor.training.data import Data, open_data
from compressor.training.evaluate import evaluate
from compressor.training.events import EpochEvent, Event
from compressor.training.loop import fit
from compressor.training.numerics import choose_device, generator, seed_everything_
from compressor.training.settings import DataSettings
from sample_models.vgg16_cifar import build

RESULTS = Path(__file__).parent / "results"
_LOADING = DataSettings(validation=0.1)
# Table 1, CIFAR-10: base, after two and after seven convolutions (the rows of the sub-models are swapped there); the
# base alone is the paper's "baseline model", for which it found another weight decay.
PAPER = {"top1": (0.9267, 0.9115, 0.7738), "macs_thop": (0.314e9, 0.275e9, 0.124e9), "alone_top1": (0.9316,)}
AT = ("features.7", "features.24")


@dataclass(frozen=True)
class Scale:
    """A network and a budget."""

    width: float
    epochs: int
    images: int | None  # of the training set; None: all
    batch_size: int
    lr: float
    alone_weight_decay: float
    schedule: str  # the paper's steps, or for a short run the cosine


SCALES = {
    "smoke": Scale(0.0625, 1, 200, 32, 0.01, 6e-4, "cosine"),
    "cpu": Scale(0.25, 5, 20_000, 32, 0.01, 6e-4, "cosine"),
    "paper": Scale(1.0, 300, None, 32, 0.01, 6e-3, "step"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--data", action="append", metavar="NAME=SPEC", required=True)
    parser.add_argument("--bn", nargs="+", choices=("stats", "switchable", "shared"), default=["stats"])
    parser.add_argument("--alone", choices=("base", "all", "none"), default="base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="another number than the scale's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    scale = replace(scale, epochs=arguments.epochs or scale.epochs)
    out = arguments.out or RESULTS / f"cnsn-{arguments.scale}.json"
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    results |= {
        "benchmark": "cnsn",
        "scale": {"name": arguments.scale, **asdict(scale)},
        "paper": PAPER,
    }
    for entry in arguments.data:
        name, _, spec = entry.partition("=")
        for seed in arguments.seeds:
            data = _data(spec, scale, seed)
            for number, bn in enumerate(arguments.bn):
                alone = arguments.alone if number == 0 else "none"
                for row in measure(name, data, bn, scale, seed, arguments.device, alone):
                    _add(results, row)
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print(f"\n{out}")


def measure(name: str, data: Data, bn: str, scale: Scale, seed: int, device: str, alone: str) -> list[dict[str, Any]]:
    """One data set, mode and seed: all models on one set of weights, and alone what is asked."""
    settings = DetachSettings(at=AT, bn=bn)  # type: ignore[arg-type]  # one of the parser's choices
    training = replace(
        CNSN,
        epochs=scale.epochs,
        batch_size=scale.batch_size,
        lr=scale.lr,
        schedule=scale.schedule,  # type: ignore[arg-type]  # one of the table's
        seed=seed,
        device=device,
        evaluate_every=0,
    )
    training = falling("cnsn", training)
    seed_everything_(seed)
    base = build(len(data.classes), data.input_shape[0], scale.width)
    model, notes = cut(base, torch.zeros(1, *data.input_shape), settings)
    assert isinstance(model, Detachable)
    model.to(choose_device(device))
    count = {"none": 0, "base": 1, "all": model.exits + 1}[alone]
    learners = [copy.deepcopy(learner) for learner in model.learners()[:count]]
    costs = list(model_costs(model, torch.zeros(1, *data.input_shape), profile))
    step, _ = training_of(model, settings, training, data)
    start = time.perf_counter()
    fit(model, data, training, step=step, on_event=_show)
    row = {
        "data": name,
        "images": len(data.train),
        "bn": bn,
        "seed": seed,
        "epochs": scale.epochs,
        "seconds": round(time.perf_counter() - start, 1),
        "top1": _accuracies(model, data),
        "macs": [cost.macs for cost in costs],
        "macs_thop": [cost.macs_thop for cost in costs],
        "params": [cost.params for cost in costs],
        "notes": notes,
        "machine": device_words(choose_device(device)),
        "versions": versions(),
        "alone_top1": None,
    }
    rows = [row]
    if bn == "shared":
        again = recalibrated(model, data, seed)
        rows.append({**row, "bn": "shared, recalibrated", "top1": _accuracies(again, data)})
    decayed = replace(training, weight_decay=scale.alone_weight_decay)
    for learner in learners:
        fit(learner, data, decayed, on_event=_show)
    row["alone_top1"] = [evaluate(learner, data.test, data).top1 for learner in learners] or None
    return rows


def _accuracies(model: Any, data: Data) -> list[float]:
    return [evaluate(model.detach(exit), data.test, data).top1 for exit in range(model.exits + 1)]


def _data(spec: str, scale: Scale, seed: int, loading: DataSettings = _LOADING) -> Data:
    data = open_data(spec, loading)
    if scale.images is None:
        return data
    order = torch.randperm(len(data.train), generator=generator(torch.device("cpu"), seed, "part"))
    return replace(data, train=data.train.take(order[: scale.images]))


def _add(results: dict[str, Any], row: dict[str, Any]) -> None:
    def key(each: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(each[name] for name in ("data", "bn", "seed"))

    results["rows"] = [*(each for each in results["rows"] if key(each) != key(row)), row]


def _show(event: Event) -> None:
    if isinstance(event, EpochEvent):
        row = event.row
        line = f"epoch {row['epoch'] + 1} loss {row['train_loss']:.4f} {row['seconds']:.0f} s"
        print(line, file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """Ours beside the paper's as Markdown, a line a model."""
    lines = ["| data, `--bn`, epochs x images, seed | MACs | thop | parameters | together | paper | alone | paper |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    paper = results["paper"]
    for row in results["rows"]:
        full = row["data"].startswith("cifar10") and results["scale"]["width"] == 1
        label = f"{row['data']}, {row['bn']}, {row['epochs']} x {row['images']:,}, {row['seed']}"
        for exit, top1 in enumerate(row["top1"]):
            thop = row["macs_thop"][exit]
            cells = [f"{row['macs'][exit] / 1e6:.1f} M", "–" if thop is None else f"{thop / 1e6:.1f} M"]
            cells += [f"{row['params'][exit] / 1e6:.2f} M", f"{top1:.4f}"]
            cells += [_figure(paper["top1"] if full else None, exit), _figure(row["alone_top1"], exit)]
            cells.append(_figure(paper["alone_top1"] if full else None, exit))
            name = f"from {AT[exit - 1]}" if exit else label
            lines.append(f"| {' | '.join((name, *cells))} |")
    return "\n".join((*lines, "", machines(results["rows"])))


def _figure(figures: list[float] | None, exit: int) -> str:
    return "–" if figures is None or exit >= len(figures) else f"{figures[exit]:.4f}"


if __name__ == "__main__":
    main()
