"""AdapNet measured: against one-shot l1 at a small scale, and the paper's tables at full size.

    python -m benchmarks.adapnet --scale small --data fashion-mnist=fashion-mnist:DIR --data cifar10-jpeg=folder:DIR
    python -m benchmarks.adapnet --table 4 --data cifar10=cifar10:DIR --data cifar100=cifar100:DIR       # for a GPU
    python -m benchmarks.adapnet --table 4 --scale small --data cifar10-jpeg=folder:DIR

`--scale small` takes about a quarter of an hour on one core for each data set: quarter-width VGG-11, 5,000 training
images, three seeds; `--start trained` begins with 16 epochs instead of 5, and has 4 after it. `--table` takes 3, 4, 5,
6, 10, 11, 12 or 13, each the paper's whole training (up to 120 epochs); with `--scale small` quarter-width networks,
5,000 images and 16 epochs, a minute or two on one core for each network. Writes benchmarks/results/adapnet-small.json,
adapnet-small-trained.json, adapnet-table-N.json or adapnet-table-N-small.json, adding to what stands there.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import adapnet_small, adapnet_tables
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.report.environment import device_words, versions
from compressor.runs.settings import GoalSettings
from compressor.training.data import Data, open_data
from compressor.training.numerics import choose_device
from compressor.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Regime:
    """How long all networks train at the small scale, at which rates, and AdapNet's settings."""

    settings: AdapNetSettings
    start: adapnet_small.Start
    epochs: int  # after the start
    halvings: tuple[int, ...]  # epochs after the start at which the learning rate halves, of every network
    augment: Literal["auto", "crop+flip"] = "auto"


# Eighteen epochs in all, of which the structure changes in the first eight at most: the threshold starts lower and
# falls faster than the paper's, and counts are scaled so that more filters qualify at it. The target is one of
# parameters, most of which are in the late layers: the threshold is lower there and higher in the early ones, which few
# merges narrow. The learning rate is high while the structure changes, then falls to a sixty-fourth; for all networks.
SMALL = replace(
    PRESETS["quick"],
    max_epochs=8,
    beta_start=0.6,
    beta_step=0.12,
    chi_s=8.0,
    prune_cap=0.15,
    merge_cap=0.01,
    params_bias=1.0,
    lr=0.05,
    lr_halve_every=8,
)
TRAINED = PRESETS["short"]
REGIMES = {
    "early": Regime(SMALL, adapnet_small.Start(5, lr=0.05, width=0.25), 18, (8, 11, 13, 15, 16, 17)),
    # Without augmentation the start would know Fashion-MNIST's few images by heart.
    "trained": Regime(TRAINED, adapnet_small.Start(16, lr=0.05, width=0.25), 4, (1, 2, 3), "crop+flip"),
}
GOALS = GoalSettings(target_params=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=["small", "toy"], help="of a table, toy only shows that it runs")
    parser.add_argument("--table", choices=adapnet_tables.NUMBERS)
    parser.add_argument("--data", action="append", metavar="NAME=SPEC", required=True)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--start", choices=REGIMES, default="early", help="how far all are trained, for --scale small")
    parser.add_argument("--images", type=int, default=5000, help="of each training set, for --scale small")
    parser.add_argument(
        "--judge", choices=["test", "validation"], default="test", help="validation: to choose settings by; give --out"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reduced, toy = arguments.scale == "small", arguments.scale == "toy"
    small = reduced and arguments.table is None
    if arguments.table is None and not reduced:
        parser.error("give --scale small, or --table N and perhaps a scale")
    if arguments.start != "early" and not small:
        parser.error("--start is for --scale small; the tables have their own start-up phase")
    if toy and arguments.out is None:
        parser.error("--scale toy measures nothing: give a file besides the results by --out")
    if arguments.judge == "validation" and (arguments.out is None or not small):
        parser.error("--judge validation is for --scale small, to choose settings by: give a file of its own by --out")
    regime = REGIMES[arguments.start]
    suffix = "" if arguments.start == "early" else f"-{arguments.start}"
    name = f"adapnet-small{suffix}" if small else f"adapnet-table-{arguments.table}{'-small' if reduced else ''}"
    out = arguments.out or RESULTS / f"{name}.json"
    scales = {None: adapnet_tables.TABLES.__getitem__, "small": adapnet_tables.small, "toy": adapnet_tables.toy}
    table = None if small else scales[arguments.scale](arguments.table)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    results |= {"benchmark": name, "machine": device_words(choose_device(arguments.device)), "versions": versions()}
    results |= adapnet_tables.budget(arguments.table, table) if table else _small_budget(regime, arguments.images)
    if reduced:
        results["train_images"] = arguments.images
    for entry in arguments.data:
        data_name, _, spec = entry.partition("=")
        for seed in arguments.seeds or ([0, 1, 2] if small else [0]):
            augment = regime.augment if small else "auto"
            training = TrainSettings(seed=seed, device=arguments.device, evaluate_every=0, augment=augment)
            data = replace(open_data(spec), name=data_name)
            if table is None:
                rows = _small(regime, data, arguments.images, training, arguments.judge)
            else:
                if arguments.scale is not None:
                    data = adapnet_small.subset(data, 64 if toy else arguments.images, seed, 64 if toy else None)
                rows = adapnet_tables.run(table, data, training, _show)
            kept = [row for row in results["rows"] if (row["data"], row["seed"]) != (data_name, seed)]
            results["rows"] = [*kept, *rows]
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    print((adapnet_small if small else adapnet_tables).table(results))
    print(f"\n{out}")


def _small_budget(regime: Regime, images: int) -> dict[str, Any]:
    return {
        "network": f"VGG-11, width {regime.start.width}",
        "train_images": images,
        "start_epochs": regime.start.epochs,
        "start_lr": regime.start.lr,
        "augment": regime.augment,
        "epochs": regime.epochs,
        "halvings": regime.halvings,
        "settings": asdict(regime.settings),
        "goals": asdict(GOALS),
    }


def _small(regime: Regime, data: Data, images: int, training: TrainSettings, judge: str) -> list[dict[str, Any]]:
    part = adapnet_small.subset(data, images, training.seed)
    part = part if judge == "test" else replace(part, test=data.validation)
    trial = adapnet_small.Trial(part, regime.settings, GOALS, training, regime.start, regime.epochs, regime.halvings)
    return adapnet_small.run(trial, _show)


def _show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
