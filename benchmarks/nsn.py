"""Nested networks (NSN) on MNIST and Fashion-MNIST, beside the figures of the paper's Tables 1 to 6.

    python -m benchmarks.nsn --scale cpu --data mnist=mnist:DIR --data fashion-mnist=fashion-mnist:DIR
    python -m benchmarks.nsn --scale paper --alone --seeds 0 1 2 --data mnist=mnist:DIR --layers 1 --layers 2

`paper` is the paper's budget, 600 epochs, for a GPU; `cpu` takes some seven minutes of one free core for each data set.
The paper reports the best test accuracy of all epochs; ours is that of the last epoch, and nothing looks at the test
set before. `--alone` also trains every model by itself, with the paper's optimizer and penalties for that. Writes
benchmarks/results/nsn-SCALE.json, adding to what stands there.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.where import machines
from compressor.exits.learning import l2_of, training_of
from compressor.exits.nested import Nested, make_nested
from compressor.exits.points import Survey
from compressor.exits.settings import NSN, DetachSettings, falling
from compressor.report.environment import device_words, versions
from compressor.training.data import Data, open_data
from compressor.training.evaluate import evaluate
from compressor.training.events import EpochEvent, Event
from compressor.training.loop import fit
from compressor.training.numerics import choose_device, seed_everything_
from compressor.training.settings import DataSettings, TrainSettings
from sample_models.mlp import INPUT_SHAPE, build

RESULTS = Path(__file__).parent / "results"
# Test accuracy, the model with most layers first: trained together (Tables 3 to 6), each alone (Tables 1 and 2).
PAPER = {
    ("mnist", 1): (0.9857, 0.9253),
    ("mnist", 2): (0.989, 0.9843, 0.926),
    ("fashion-mnist", 1): (0.9062, 0.8429),
    ("fashion-mnist", 2): (0.912, 0.9047, 0.8402),
}
PAPER_ALONE = {"mnist": (0.9886, 0.9882, 0.9241), "fashion-mnist": (0.9089, 0.9085, 0.8457)}  # 2, 1, 0 hidden layers
PENALTY_ALONE = (1e-5, 5e-6, 9e-5)  # for 2, 1, 0 hidden layers
UNUSED = 1 / 60  # share of the training images set aside, at which nothing looks


@dataclass(frozen=True)
class Scale:
    """A budget."""

    epochs: int
    size: int  # pixels of an image's side


SCALES = {"smoke": Scale(1, 8), "cpu": Scale(30, 28), "paper": Scale(600, 28)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--data", action="append", metavar="NAME=SPEC", required=True)
    parser.add_argument("--layers", type=int, action="append", choices=(1, 2), help="hidden layers of the base [2]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="another number than the scale's")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    scale = replace(scale, epochs=arguments.epochs or scale.epochs)
    out = arguments.out or RESULTS / f"nsn-{arguments.scale}.json"
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    results |= {
        "benchmark": "nsn",
        "scale": {"name": arguments.scale, "size": scale.size},
    }
    for entry in arguments.data:
        name, _, spec = entry.partition("=")
        for layers in arguments.layers or [2]:
            for seed in arguments.seeds:
                row = measure(name, spec, layers, scale, seed, arguments.device, alone=arguments.alone)
                key = (name, layers, seed)
                rows = [each for each in results["rows"] if (each["data"], each["layers"], each["seed"]) != key]
                results["rows"] = [*rows, row]
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print(f"\n{out}")


def measure(name: str, spec: str, layers: int, scale: Scale, seed: int, device: str, *, alone: bool) -> dict[str, Any]:
    """One data set, base and seed: all models on one set of weights, and each alone where asked."""
    data = _data(spec, scale)
    settings = DetachSettings(method="nsn")
    training = falling("nsn", replace(NSN, epochs=scale.epochs, seed=seed, device=device))
    training = replace(training, evaluate_every=0, log_seconds=30.0)
    model = _nested(layers, scale, seed, settings).to(choose_device(device))
    step, optimizer = training_of(model, settings, training, data)
    start = time.perf_counter()
    fit(model, data, training, step=step, optimizer=optimizer, on_event=_show)
    seconds = time.perf_counter() - start
    top1 = [evaluate(model.detach(exit), data.test, data).top1 for exit in range(model.exits + 1)]
    return {
        "data": name,
        "layers": layers,
        "seed": seed,
        "epochs": scale.epochs,
        "top1": top1,
        "paper_top1": PAPER.get((name, layers)),
        "params": [sum(p.numel() for p in model.detach(exit).parameters()) for exit in range(model.exits + 1)],
        "l2": l2_of(model, settings),
        "seconds": round(seconds, 1),
        "machine": device_words(choose_device(device)),
        "versions": versions(),
        "alone_top1": [_alone(k, layers, data, scale, seed, training) for k in range(layers + 1)] if alone else None,
        "paper_alone_top1": PAPER_ALONE[name][2 - layers :] if name in PAPER_ALONE else None,
    }


def _alone(exit: int, layers: int, data: Data, scale: Scale, seed: int, training: TrainSettings) -> float:
    """The model of an exit trained by itself: usual momentum, the penalty on all its weights."""
    learner: nn.Module = _nested(layers, scale, seed, DetachSettings(method="nsn")).stacks[exit]
    fit(learner, data, replace(training, weight_decay=PENALTY_ALONE[2 - layers + exit]), on_event=_show)
    return evaluate(learner, data.test, data).top1


def _nested(layers: int, scale: Scale, seed: int, settings: DetachSettings) -> Nested:
    seed_everything_(seed)
    base = build(hidden_layers=layers, size=scale.size)
    return make_nested(Survey(base, (INPUT_SHAPE[0], scale.size, scale.size)), settings)


def _data(spec: str, scale: Scale) -> Data:
    """Pixels in 0..1, not standardised, as in the paper."""
    loading = DataSettings(validation=UNUSED, mean=(0.0,), std=(1.0,))
    return open_data(spec, loading, input_shape=(INPUT_SHAPE[0], scale.size, scale.size))


def _show(event: Event) -> None:
    if isinstance(event, EpochEvent):
        row = event.row
        line = f"epoch {row['epoch'] + 1} loss {row['train_loss']:.4f} {row['seconds']:.0f} s"
        print(line, file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """Ours beside the paper's as Markdown, a line a model."""
    lines = ["| data, epochs, seed | hidden layers | parameters | ours | paper | ours alone | paper alone |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in results["rows"]:
        for exit, top1 in enumerate(row["top1"]):
            name = f"{row['data']}, {row['epochs']}, {row['seed']}" if exit == 0 else ""
            known = (row[key] for key in ("paper_top1", "alone_top1", "paper_alone_top1"))
            figures = [top1, *(None if each is None else each[exit] for each in known)]
            shown = ("–" if each is None else f"{each:.4f}" for each in figures)
            cells = (name, str(row["layers"] - exit), f"{row['params'][exit]:,}", *shown)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join((*lines, "", machines(results["rows"])))


if __name__ == "__main__":
    main()
