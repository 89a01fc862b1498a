"""Accuracy against multiply-adds: AdapNet and our one-shot methods against Torch-Pruning's, in one process.

    python -m benchmarks.pareto --jobs 2 --data fashion-mnist=fashion-mnist:DIR --data cifar10-jpeg=folder:DIR
    python -m benchmarks.pareto --full --data cifar10=cifar10:DIR                                  # for a GPU

All methods start from the same weights of a network trained on the same images, and spend the same number of epochs on
the same schedule of learning rates; 30, 50, 70 and 85 % of the multiply-adds go, counted on the graph that runs. The
test set is read once for each network, at the end. Without `--full`: quarter-width VGG-11 and half-width ResNet-20 on
5,000 training images, three seeds, about an hour on two cores. With it: VGG-11, AlexNet, ResNet-50 and Net2 on all
images with the paper's settings. Writes benchmarks/results/pareto-small.json
(pareto-full.json) row by row, goes on where it was broken off, and draws the plot beside it.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any, Literal

import torch
from torch import nn

from benchmarks import pareto_ours, pareto_peers
from benchmarks.adapnet import TRAINED
from benchmarks.adapnet_small import subset
from benchmarks.adapnet_tables import TABLES
from benchmarks.pareto_case import Arm, Case
from benchmarks.pareto_show import draw, table
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.training.data import open_data, with_input_shape
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import choose_device, seed_everything_
from compressor.training.settings import TrainSettings
from sample_models import resnet_cifar, vgg11

RESULTS = Path(__file__).parent / "results"
LEFT = (0.7, 0.5, 0.3, 0.15)  # shares of the multiply-adds that stay
ARMS: dict[str, Arm] = pareto_ours.ARMS | pareto_peers.ARMS
Build = Callable[[int, int], nn.Module]  # (classes, channels) -> a network with random weights


@dataclass(frozen=True)
class Scale:
    """How large the comparison is."""

    networks: dict[str, tuple[Build, int]]  # and the side of their images; 0: as the data are
    images: int  # training images; 0: all
    start_epochs: int
    start_lr: float
    epochs: int  # after the start, at the rate in `settings`
    falling: int  # of these the last so many, along a cosine to nothing; 0: on AdapNet's schedule
    augment: Literal["auto", "crop+flip"]
    settings: AdapNetSettings


SCALES = {
    "small": Scale(
        {
            "VGG-11 x0.25": (partial(vgg11.build, width=0.25), 0),
            "ResNet-20 x0.5": (partial(resnet_cifar.build, depth=20, width=0.5), 0),
        },
        # Trained as well as the images allow, then few epochs, as one does with a network at hand: what a method keeps
        # of the network counts, and not only how well any network of its widths trains.
        images=5000,
        start_epochs=16,
        start_lr=0.05,
        epochs=2,
        falling=1,
        augment="crop+flip",
        # AdapNet changes the structure in the first epoch, in ten periods; no layer gets so narrow that all suffer.
        settings=replace(TRAINED, beta_step=0.21, lr_halve_every=PRESETS["quick"].lr_halve_every),
    ),
    "full": Scale(
        {
            name: (lambda classes, channels, table=TABLES[number]: table.build(classes), TABLES[number].size)
            for name, number in (("VGG-11", "4"), ("AlexNet", "5"), ("ResNet-50", "6"), ("Net2", "3"))
        },
        images=0,
        start_epochs=PRESETS["paper"].startup_untrained,
        start_lr=PRESETS["paper"].lr,
        falling=0,
        augment="auto",
        epochs=PRESETS["paper"].max_epochs + PRESETS["paper"].finetune_epochs,
        settings=PRESETS["paper"],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", metavar="NAME=SPEC", required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--networks", nargs="+", help="of the scale's; all without it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each, side by side")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    name = "full" if arguments.full else "small"
    scale, out = SCALES[name], arguments.out or RESULTS / f"pareto-{name}.json"
    result = _opened(out, name, scale, arguments.device, 1 if arguments.jobs > 1 else torch.get_num_threads())
    networks = arguments.networks or list(scale.networks)
    if unknown := set(networks) - set(scale.networks):
        parser.error(f"--networks {', '.join(unknown)}: there are {', '.join(scale.networks)}")
    jobs = list(_jobs(networks, arguments.data, arguments.seeds, name, arguments.only, arguments.device))
    for row in _rows(jobs, _done(result), arguments.jobs):
        result["rows"].append(row)
        write_json(out, result)
        print(json.dumps(row), file=sys.stderr, flush=True)
    draw(result, out.with_suffix(".svg"))
    print(table(result))
    print(f"\n{out}\n{out.with_suffix('.svg')}")


@dataclass(frozen=True)
class Job:
    """One start and all that comes of it."""

    scale: str
    network: str
    data_name: str
    data: str
    seed: int
    arms: tuple[str, ...]
    device: str


def _jobs(
    networks: list[str], specs: list[str], seeds: list[int], scale: str, arms: list[str], device: str
) -> Iterator[Job]:
    """First every network on a data set of its own, so that a part of the result shows as much as it can."""
    given = [(name, spec) for name, _, spec in (each.partition("=") for each in specs)]
    for turn in range(len(given)):
        for place, network in enumerate(networks):
            name, spec = given[(place + turn) % len(given)]
            for seed in seeds:
                yield Job(scale, network, name, spec, seed, tuple(arms), device)


Done = set[tuple[str, str, int, str, float]]


def _done(result: dict[str, Any]) -> Done:
    return {(row["network"], row["data"], row["seed"], row["method"], row["left"]) for row in result["rows"]}


def _rows(jobs: list[Job], done: Done, processes: int) -> Iterator[dict[str, Any]]:
    """What is not there yet, as it comes; in several processes of one thread each, a job in each."""
    if processes == 1:
        for job in jobs:
            yield from _measure(job, done)
        return
    context = get_context("spawn")
    with context.Manager() as manager, context.Pool(processes, torch.set_num_threads, (1,)) as pool:
        queue = manager.Queue()
        ends = [pool.apply_async(_put_all, (job, done, queue)) for job in jobs]
        while not all(end.ready() for end in ends) or not queue.empty():
            try:
                yield queue.get(timeout=1)
            except Empty:
                continue
        for end in ends:
            end.get()  # raises what the process raised


def _put_all(job: Job, done: Done, queue: Any) -> None:
    for row in _measure(job, done):
        queue.put(row)


def _measure(job: Job, done: Done) -> Iterator[dict[str, Any]]:
    """Rows of one start that are not there yet."""
    wanted: list[tuple[str, float, Arm]] = [("untouched", 1.0, pareto_ours.untouched)]
    wanted += [(name, left, ARMS[name]) for left in reversed(LEFT) for name in job.arms]
    wanted = [each for each in wanted if (job.network, job.data_name, job.seed, *each[:2]) not in done]
    if not wanted:
        return
    warnings.filterwarnings("ignore", module="torch_pruning")
    case = _case(job)
    whole, began = case.macs(case.start), evaluate(case.start, case.data.test, case.data).top1
    for name, left, arm in wanted:
        wall, processor = time.perf_counter(), time.process_time()
        outcome = arm(case, left)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        yield {
            "network": job.network,
            "data": job.data_name,
            "seed": job.seed,
            "method": name,
            "left": left,
            "top1": evaluate(outcome.model, case.data.test, case.data).top1,
            "macs_left": case.macs(outcome.model) / whole,
            "params": sum(parameter.numel() for parameter in outcome.model.parameters()),
            "start_top1": began,
            "seconds": round(wall, 1),
            "cpu_seconds": round(processor, 1),
            **outcome.facts,
        }


def _case(job: Job) -> Case:
    """Train the network that all arms start from."""
    scale, device = SCALES[job.scale], job.device
    build, side = scale.networks[job.network]
    data = replace(open_data(job.data), name=job.data_name)
    data = subset(data, scale.images, job.seed) if scale.images else data
    data = with_input_shape(data, (data.input_shape[0], side, side)) if side else data
    seed_everything_(job.seed)
    model = build(len(data.classes), data.input_shape[0]).to(choose_device(device))
    training = TrainSettings(seed=job.seed, device=device, evaluate_every=0, augment=scale.augment)
    case = Case(model, data, scale.settings, training, scale.epochs, scale.falling)
    fit(model, data, replace(case.phases(0).training, epochs=scale.start_epochs, lr=scale.start_lr, schedule="cosine"))
    return case


def _opened(out: Path, name: str, scale: Scale, device: str, threads: int) -> dict[str, Any]:
    """The result as it stands, or a new one."""
    told = {
        "scale": name,
        "train_images": scale.images or "all",
        "start_epochs": scale.start_epochs,
        "start_lr": scale.start_lr,
        "epochs": scale.epochs,
        "falling": scale.falling,
        "augment": scale.augment,
        "adapnet": json.loads(json.dumps(asdict(scale.settings))),
    }
    if out.exists():  # settings that came after the result was begun are off by default
        known = json.loads(out.read_text())["adapnet"]
        told["adapnet"] = {key: value for key, value in told["adapnet"].items() if key in known}
    return opened(out, told, device, threads)


if __name__ == "__main__":
    main()
