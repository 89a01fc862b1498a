"""What `--preset short` of AdapNet costs: a run of 13 epochs beside as many of plain fine-tuning.

    python -m benchmarks.adapnet_time --nets DIR --data cifar10-jpeg=folder:DIR

The ResNet-20 of `benchmarks/real.py`, its images, `--preset short` to a share of the multiply-adds, and the same steps
of training without it; processor time. Writes benchmarks/results/adapnet_time.json.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapnet_small import looked_at
from benchmarks.real import NETWORKS, case_of
from benchmarks.real_arms import Case
from compressor.files.paths import write_json
from compressor.graph import capture
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import PRESETS
from compressor.report.environment import device_words, versions
from compressor.runs.course import Network
from compressor.runs.goals import Target
from compressor.runs.periods import Periods
from compressor.runs.phases import Phases, TrainingPhases
from compressor.runs.settings import GoalSettings
from compressor.training.loop import fit
from compressor.training.numerics import seed_everything_
from compressor.training.settings import DistillSettings

OUT = Path(__file__).parent / "results" / "adapnet_time.json"


def main() -> None:
    """Measure both and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, help="folder with the published ResNets")
    parser.add_argument("--data", metavar="NAME=SPEC", required=True)
    parser.add_argument("--left", nargs="+", type=float, default=[0.5, 0.9])
    parser.add_argument("--epochs", type=int, default=13)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.device = "cpu"
    torch.set_num_threads(1)
    case = case_of(NETWORKS["resnet20"], given.data.split("=", 1)[1], 0, given)
    chosen = replace(PRESETS["short"], startup_epochs=0, finetune_epochs=given.epochs - PRESETS["short"].max_epochs)
    phases = Phases.of(chosen, case.training, trained=True)
    result: dict[str, Any] = {
        "network": "resnet20", "train_images": NETWORKS["resnet20"].images, "epochs": given.epochs,
        "batch_size": chosen.batch_size, "machine": device_words(torch.device("cpu")), "versions": versions(),
        "plain": _plain(case, phases, given.epochs),
        "adapnet": [{"left": left} | _adapnet(case, phases, left) for left in given.left],
    }  # fmt: skip
    write_json(given.out, result)
    print(json.dumps(result, indent=1))


def _plain(case: Case, phases: Phases, epochs: int) -> float:
    seed_everything_(case.seed)
    model, began = copy.deepcopy(case.start), time.process_time()
    fit(model, case.data, replace(phases.of_phase("finetune"), first_epoch=0, epochs=epochs))
    return round(time.process_time() - began, 1)


def _adapnet(case: Case, phases: Phases, left: float) -> dict[str, Any]:
    seed_everything_(case.seed)
    model, began = copy.deepcopy(case.start), time.process_time()
    channels, settings = capture(model, case.example), phases.settings
    steps = case.data.steps(phases.training)
    method = AdapNet(settings, classes=len(case.data.classes), steps_per_epoch=steps, seed=case.seed)
    target = Target.of(GoalSettings(target_macs=left), channels)
    inputs = looked_at(case.data, case.seed, model)
    periods = Periods(Network(model, channels, case.example), method, target, inputs=inputs)
    TrainingPhases(model, case.data, periods, phases, DistillSettings(), trained=True).run()
    return {
        "cpu_seconds": round(time.process_time() - began, 1),
        "periods": sum(row["phase"] == "period" for row in periods.rows),
        "macs_left": periods.channels.macs() / channels.macs(),
    }


def words(result: dict[str, Any]) -> str:
    """How much longer a run takes, in sentences."""
    plain = result["plain"]
    runs = " and ".join(
        f"{row['cpu_seconds'] / plain:.2f} times as long where it goes to {row['macs_left']:.0%} of the MACs in "
        f"{row['periods']} periods"
        for row in result["adapnet"]
    )
    return (
        f"{result['epochs']} epochs of {result['train_images']:,} images in batches of {result['batch_size']} take "
        f"{plain:.0f} s of the processor as plain fine-tuning, and with `--preset short` {runs}. {result['machine']}."
    )


if __name__ == "__main__":
    main()
