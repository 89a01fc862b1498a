"""The training loop against a plain one, evaluation against a plain one, and what AdapNet adds to an epoch.

    python -m benchmarks.training --data fashion-mnist:DIR --out benchmarks/results/training-cpu.json

One process, the same network, weights, images and precision, one after another in rounds; medians. The plain loop is
the kind in torchvision's references: a DataLoader with random crop and flip for each image, cross-entropy, SGD, the
loss read once a batch for the log. `bare` is the same without a DataLoader and without augmentation, on batches that
lie ready, in torch's usual memory layout. On the CPU times are processor time, which other programs on the machine
disturb least, and the DataLoader has no workers: all of them have one thread.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

from benchmarks.adapnet_small import subset
from compressor.graph import capture
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import PRESETS
from compressor.report.environment import device_words, versions
from compressor.runs.course import Network
from compressor.runs.goals import Target
from compressor.runs.periods import Periods
from compressor.runs.phases import Phases, TrainingPhases
from compressor.runs.settings import GoalSettings
from compressor.training.data import Data, open_data
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import choose_device, uses_bfloat16
from compressor.training.settings import DistillSettings, TrainSettings
from sample_models import vgg11

PERIOD = 150  # steps, the paper's


class Augmented(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images one by one, as torchvision's references transform them."""

    def __init__(self, data: Data) -> None:
        self.images, self.labels = data.train.images, data.train.labels  # type: ignore[union-attr]
        from torchvision.transforms import v2  # after compressor.vision, which makes it load beside a CPU build

        size = data.input_shape[1]
        self.transform = v2.Compose(
            [
                v2.RandomCrop(size, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(data.preparation.mean, data.preparation.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def ours(model: nn.Module, data: Data, settings: TrainSettings) -> None:
    fit(model, data, settings)


def plain(model: nn.Module, data: Data, settings: TrainSettings, workers: int) -> None:
    device = choose_device(settings.device)
    loader = DataLoader(
        Augmented(data), settings.batch_size, shuffle=True, drop_last=True, num_workers=workers, pin_memory=workers > 0
    )
    _train(model, ((x.to(device), y.to(device)) for x, y in loader), settings, device)


def bare(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], settings: TrainSettings) -> None:
    _train(model, iter(batches), settings, choose_device(settings.device))


def _train(model: nn.Module, batches: Any, settings: TrainSettings, device: torch.device) -> None:
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    shown = 0.0
    for x, y in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device)):
            loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown += loss.item()


@torch.no_grad()
def plain_evaluation(model: nn.Module, data: Data, device: torch.device, size: int) -> float:
    """Normalise and run batch after batch."""
    model.to(device).eval()
    images, labels = data.test.images, data.test.labels  # type: ignore[union-attr]
    mean, std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1)
        for values in (data.preparation.mean, data.preparation.std)
    )
    right = 0
    for x, y in zip(images.split(size), labels.split(size)):
        x = (x.to(device).float() / 255 - mean) / std
        right += int((model(x).argmax(1) == y.to(device)).sum())
    return right / len(labels)


def with_adapnet(model: nn.Module, data: Data, training: TrainSettings, epochs: int) -> dict[str, Any]:
    """Epochs of AdapNet's second phase at its own settings, in periods of `PERIOD` steps."""
    chosen = replace(PRESETS["quick"], lsep=PERIOD, startup_epochs=0, max_epochs=epochs)
    phases = Phases.of(replace(chosen, finetune_epochs=0), training, trained=True)
    example = torch.zeros(1, *data.input_shape, device=next(model.parameters()).device)
    channels = capture(model, example)
    method = AdapNet(chosen, classes=len(data.classes), steps_per_epoch=PERIOD, seed=0)
    goals = GoalSettings()
    periods = Periods(Network(model, channels, example), method, Target.of(goals, channels))
    TrainingPhases(model, data, periods, phases, DistillSettings(), trained=True).run()
    return {"periods": method.period, "macs_left": periods.channels.macs() / channels.macs()}


def timed(job: Callable[[], Any], device: torch.device) -> float:
    """Seconds: of the processor on the CPU, of the clock elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def where_time_goes(job: Callable[[], Any], most: int = 8) -> dict[str, float]:
    """The operators with the largest shares of the processor's time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        job()
    rows = profiler.key_averages()
    whole = sum(row.self_cpu_time_total for row in rows)
    rows = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:most]
    return {row.key: round(row.self_cpu_time_total / whole, 3) for row in rows}


def measure(data: Data, device: torch.device, rounds: int, workers: int) -> dict[str, Any]:
    """All comparisons, on a quarter-width VGG-11 on the CPU and a whole one elsewhere."""
    width = 0.25 if device.type == "cpu" else 1.0
    settings = TrainSettings(epochs=1, evaluate_every=0, augment="crop+flip", device=str(device))
    start = vgg11.build(len(data.classes), data.input_shape[0], width).to(device)
    ready = list(data.training(replace(settings, augment="none"), 0, 0, device))
    loops: dict[str, Callable[[nn.Module], Any]] = {
        "ours": lambda model: ours(model, data, settings),
        "plain": lambda model: plain(model, data, settings, workers),
        "bare": lambda model: bare(model, ready, settings),
        "ours, evaluation": lambda model: evaluate(model, data.test, data),
        "plain, evaluation": lambda model: plain_evaluation(model, data, device, 512),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):  # the first round warms up
        for name, loop in loops.items():
            took = timed(lambda loop=loop: loop(copy.deepcopy(start)), device)
            if number:
                seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    images = len(ready) * settings.batch_size
    return {
        "network": f"VGG-11, width {width}",
        "train_images": images,
        "rounds": rounds,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "images_per_second": {name: round(images / median[name]) for name in ("ours", "plain", "bare")},
        "ours_over_plain": round(median["plain"] / median["ours"], 3),
        "ours_over_bare": round(median["bare"] / median["ours"], 3),
        "evaluation_ours_over_plain": round(median["plain, evaluation"] / median["ours, evaluation"], 3),
        "profile": where_time_goes(lambda: ours(copy.deepcopy(start), data, settings)),
        "adapnet": adapnet_overhead(start, data, settings, device),
    }


def adapnet_overhead(start: nn.Module, data: Data, settings: TrainSettings, device: torch.device) -> dict[str, Any]:
    """Epochs that make up two periods, with and without AdapNet."""
    epochs = -(-2 * PERIOD // (len(data.train) // settings.batch_size))
    facts: dict[str, Any] = {}
    base = replace(settings, epochs=epochs, autotune=False)
    seconds = {
        "without": timed(lambda: fit(copy.deepcopy(start), data, base), device),
        "with": timed(lambda: facts.update(with_adapnet(copy.deepcopy(start), data, base, epochs)), device),
    }
    return {
        **facts,
        "steps_a_period": PERIOD,
        "epochs": epochs,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "added": round(seconds["with"] / seconds["without"] - 1, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="of the plain loop's DataLoader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    data = subset(open_data(arguments.data), arguments.images, 0)
    where = {"machine": device_words(device), "versions": versions(), "threads": torch.get_num_threads()}
    result = (
        where
        | {"data": arguments.data.partition(":")[0], "seeds": [0]}
        | measure(data, device, arguments.rounds, arguments.workers)
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
