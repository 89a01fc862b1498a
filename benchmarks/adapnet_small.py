"""AdapNet against one-shot l1 from the same weights with the same epochs: `benchmarks/adapnet.py --scale small`.

Four networks come of the same start weights and the same number of further epochs on the same learning-rate schedule:
untouched; AdapNet; l1, global, at AdapNet's final MACs (is its choice of widths good?); l1 at AdapNet's own widths (is
its choice of filters good?). Test accuracy is read once, at the end of each.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.graph.tensors import device_of
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.oneshot import decide
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings, score_of
from compressor.runs.course import Network
from compressor.runs.goals import Guard, Target
from compressor.runs.periods import REFITTED_BY, Periods
from compressor.runs.phases import Phases, TrainingPhases
from compressor.runs.settings import GoalSettings
from compressor.surgery import Plan, Prune, operate_
from compressor.training.batch_norm import recalibrate_
from compressor.training.data import Data
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import derive_seed, seed_everything_
from compressor.training.settings import DistillSettings, TrainSettings
from sample_models.vgg11 import build


@dataclass(frozen=True)
class Start:
    """The network that all begin with: VGG-11, trained with a cosine."""

    epochs: int
    lr: float
    width: float


@dataclass(frozen=True)
class Trial:
    """One seed on one data set."""

    data: Data
    settings: AdapNetSettings
    goals: GoalSettings
    training: TrainSettings
    start: Start
    total_epochs: int  # after the start; AdapNet fine-tunes for as many as its second phase leaves
    halvings: tuple[int, ...]  # epochs after the start at which the learning rate halves

    def phases(self, finetune_epochs: int) -> Phases:
        """The second and third phase; the first is the start that all networks share."""
        settings = replace(self.settings, startup_epochs=0, finetune_epochs=finetune_epochs)
        return Phases.of(settings, self.training, trained=True)


def run(trial: Trial, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of one seed: the start, and what became of it in four ways."""
    start = _start(trial)
    rows = [_row("start", trial, start, trial.start.epochs, 0.0)]
    tell(_words(rows[-1]))

    def add(name: str, model: nn.Module, epochs: int, began: float) -> None:
        rows.append(_row(name, trial, model, epochs, time.process_time() - began))
        tell(_words(rows[-1]))

    began = time.process_time()
    small, periods, changing = _adapnet(trial, copy.deepcopy(start))
    add("adapnet", small, trial.total_epochs, began)
    rows[-1]["changing_epochs"] = changing
    rows[-1]["edits"] = _counted(periods)
    rows[-1]["filters_by_group"] = {group.name: group.size for group in periods.channels.free}
    rows[-1]["notes"] = periods.method.notes

    arms: dict[str, Callable[[nn.Module], None]] = {
        "untouched": lambda model: None,
        "l1, same MACs": lambda model: _same_macs_(model, trial, periods.channels.macs()),
        "l1, same widths": lambda model: _same_widths_(model, trial, periods.channels),
    }
    for name, cut_ in arms.items():
        began = time.process_time()
        model = copy.deepcopy(start)
        cut_(model)
        recalibrate_(model, trial.data.train, trial.data, batch_size=trial.settings.batch_size)
        _train_(model, trial, trial.total_epochs)
        add(name, model, trial.total_epochs, began)
    return rows


def _start(trial: Trial) -> nn.Module:
    """The network that all begin with, on the device."""
    seed_everything_(trial.training.seed)
    model = build(len(trial.data.classes), trial.data.input_shape[0], trial.start.width)
    settings = replace(trial.phases(0).training, epochs=trial.start.epochs, lr=trial.start.lr, schedule="cosine")
    fit(model, trial.data, settings)
    return model


def _adapnet(trial: Trial, model: nn.Module) -> tuple[nn.Module, Periods, int]:
    """AdapNet's second phase, and fine-tuning with the epochs it left; how many it took."""
    phases, data = trial.phases(0), trial.data
    example = _example(model, data)
    channels = capture(model, example)
    method = AdapNet(
        trial.settings,
        classes=len(data.classes),
        steps_per_epoch=data.steps(phases.training),
        seed=trial.training.seed,
    )
    guard = Guard(trial.goals.undo_drop, lambda: evaluate(model, data.validation, data).top1)
    inputs = looked_at(data, trial.training.seed, model) if trial.settings.reconstruct else ()
    target = Target.of(trial.goals, channels)
    periods = Periods(Network(model, channels, example), method, target, guard, inputs=inputs)
    training = TrainingPhases(model, data, periods, phases, DistillSettings(), trained=True)
    training.run()
    changing = sum(row["phase"] != "period" for row in training.rows)
    _train_(model, trial, trial.total_epochs - changing, done=changing, optimizer=training.optimizer)
    return model, periods, changing


def looked_at(data: Data, seed: int, model: nn.Module) -> list[Tensor]:
    """The random training images by which layers are refitted."""
    return [x for x, _ in data.drawn(data.train, REFITTED_BY, seed, device_of(model))]


def _train_(
    model: nn.Module,
    trial: Trial,
    epochs: int,
    *,
    done: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Plain epochs on the common schedule, from epoch `done` of it on."""
    if not epochs:
        return
    settings = trial.phases(trial.total_epochs).of_phase("periods")
    milestones = tuple(settings.first_epoch + epoch for epoch in trial.halvings)
    settings = replace(settings, first_epoch=settings.first_epoch + done, epochs=epochs, milestones=milestones)
    fit(model, trial.data, settings, optimizer=optimizer)


def _same_macs_(model: nn.Module, trial: Trial, macs: int) -> None:
    channels = capture(model, _example(model, trial.data))
    if macs >= channels.macs():
        return
    selection = decide(model, channels, PruneSettings(method="l1", allocate="global", target_macs=float(macs)))
    operate_(model, selection.plan, channels)


def _same_widths_(model: nn.Module, trial: Trial, wanted: Channels) -> None:
    channels = capture(model, _example(model, trial.data))
    scores = score_of("l1")(model, channels, Given()).values
    edits = []
    for group in channels.free:
        surplus = group.size - wanted.group(group.name).size
        if surplus > 0:
            gone = group.ids[scores[group.name].argsort(kind="stable")[:surplus]]
            edits.append(Prune(group.name, tuple(sorted(gone.tolist())), "l1 at given widths"))
    operate_(model, Plan(tuple(edits)), channels)


def _example(model: nn.Module, data: Data) -> torch.Tensor:
    return torch.zeros(1, *data.input_shape, device=next(model.parameters()).device)


def _row(name: str, trial: Trial, model: nn.Module, epochs: int, seconds: float) -> dict[str, Any]:
    channels = capture(model, _example(model, trial.data))
    return {
        "network": name,
        "data": trial.data.name,
        "seed": trial.training.seed,
        "epochs": epochs,
        "top1": evaluate(model, trial.data.test, trial.data).top1,
        "macs": channels.macs(),
        "params": channels.params(),
        "filters": sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)),
        "seconds": round(seconds, 1),
    }


def _counted(periods: Periods) -> dict[str, int]:
    kinds = [row["kind"] for plan in periods.plans for row in plan]
    return {kind: kinds.count(kind) for kind in ("prune", "merge", "insert")}


def _words(row: dict[str, Any]) -> str:
    return (
        f"seed {row['seed']}  {row['network']:<16} top-1 {row['top1']:.4f}  {row['params']:>7,} parameters  "
        f"{row['macs']:>10,} MACs  {row['filters']} filters  {row['epochs']} epochs  {row['seconds']:.0f} s"
    )


def subset(data: Data, images: int, seed: int, test: int | None = None) -> Data:
    """The data with so many training images, drawn by the seed; validation is cut to a fifth of that, and the test set
    to `test` if it is given."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "subset"))
    train = data.train.take(torch.randperm(len(data.train), generator=generator)[:images])
    validation = data.validation.take(torch.randperm(len(data.validation), generator=generator)[: images // 5])
    return replace(data, train=train, validation=validation, test=data.test.take(torch.arange(test or len(data.test))))


def table(results: dict[str, Any]) -> str:
    """The result as Markdown: mean and standard deviation over the seeds, and AdapNet's lead over each other network,
    from the same start weights."""
    lines = [
        "| data | network | top-1, % | AdapNet's lead, points | parameters left | MACs left | filters |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in dict.fromkeys(row["data"] for row in results["rows"]):
        of = {
            network: [row for row in results["rows"] if row["data"] == data and row["network"] == network]
            for network in dict.fromkeys(row["network"] for row in results["rows"])
        }
        for network, rows in of.items():
            top1 = _spread(100 * row["top1"] for row in rows)
            lead = _spread(100 * (ours["top1"] - row["top1"]) for ours, row in zip(of["adapnet"], rows, strict=True))
            params, macs = (_share(rows, of["untouched"], what) for what in ("params", "macs"))
            filters = statistics.mean(row["filters"] for row in rows)
            lead = "" if network in ("start", "adapnet") else lead
            where = f"{data}, {len(rows)} seeds"
            lines.append(f"| {where} | {network} | {top1} | {lead} | {params} | {macs} | {filters:.0f} |")
    return "\n".join(lines)


def text(results: dict[str, Any]) -> str:
    """The table, and what it is of."""
    return (
        f"{table(results)}\n\n{results['network']}, {results['train_images']:,} training images, "
        f"{results['start_epochs']} epochs to the start weights and {results['epochs']} more for each network; mean ± "
        f"standard deviation over the seeds, on the whole test set. {results['machine']}; torch "
        f"{results['versions']['torch']}."
    )


def _share(rows: list[dict[str, Any]], whole: list[dict[str, Any]], what: str) -> str:
    shares = [row[what] / untouched[what] for row, untouched in zip(rows, whole, strict=True)]
    mean, most = statistics.mean(shares), max(shares)
    return f"{mean:.1%}" if most - mean < 0.01 else f"{mean:.1%} ({most:.1%} at most)"


def _spread(values: Iterable[float]) -> str:
    values = list(values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
