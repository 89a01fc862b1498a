"""The paper's tables 3 to 6 and 10 to 13: AdapNet from random weights, whole for a GPU, or small.

Reference: Ahmadluei, Faez, Masoumi, "Adaptive Pruning of Convolutional Neural Network", section 4 and 5. The paper's
figures stand beside ours; several of them cannot be met by any reading (see docs/methods/adapnet.md).
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from compressor.graph import capture
from compressor.graph.tensors import device_of
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.oneshot import decide
from compressor.pruning.settings import PruneSettings
from compressor.runs.course import Network
from compressor.runs.goals import Target
from compressor.runs.periods import Periods
from compressor.runs.phases import Phases, TrainingPhases
from compressor.runs.settings import GoalSettings
from compressor.runs.stages import PeriodEvent
from compressor.surgery import operate_
from compressor.training.data import Data, with_input_shape
from compressor.training.evaluate import evaluating
from compressor.training.events import EpochEvent
from compressor.training.numerics import choose_device, seed_everything_
from compressor.training.settings import DistillSettings, TrainSettings
from compressor.vision import door as vision
from sample_models import net2, vgg11


@dataclass(frozen=True)
class Table:
    """One table: its network, what differs from the settings, and the paper's figures in per cent.

    `paper` maps a column (classes, or batch size) to train, top-1, top-2, prune ratio and epochs of phase two.
    """

    title: str
    build: Callable[[int], nn.Module]
    size: int = 32  # of the images
    changes: dict[str, Any] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = (128,)
    settings: AdapNetSettings = PRESETS["paper"]
    paper: dict[int, tuple[float, ...]] = field(default_factory=dict)


def alexnet(classes: int, width: float = 1.0) -> nn.Module:
    """AlexNet's five convolutions for 32x32 images, (batch, 3, 32, 32) -> (batch, classes); the paper does not say how
    it fits AlexNet to CIFAR. `width` scales every layer. Batch norm stands in for AlexNet's response normalisation:
    with none, and the paper's weight decay, it does not begin to learn.
    """
    first, second, third, fourth, hidden = (int(width * each) for each in (64, 192, 384, 256, 4096))

    def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *convolution(3, first, stride=2),
        nn.MaxPool2d(2),
        *convolution(first, second),
        nn.MaxPool2d(2),
        *convolution(second, third),
        *convolution(third, fourth),
        *convolution(fourth, fourth),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *(nn.Dropout(), nn.Linear(fourth * 2 * 2, hidden), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)),
        nn.Linear(hidden, classes),
    )


def resnet50(classes: int) -> nn.Module:
    """ResNet-50 with a 3x3 stem without pooling, as is usual for 32x32 images."""
    model = vision.build("resnet50", num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def quarter_resnet50(classes: int) -> nn.Module:
    """The same, random weights, with a quarter of the filters in every layer and a stem of stride 2."""
    model = resnet50(classes)
    model.conv1.stride = (2, 2)  # type: ignore[union-attr, assignment]
    channels = capture(model, torch.zeros(1, 3, 32, 32))
    operate_(model, decide(model, channels, PruneSettings(ratio=0.75)).plan, channels)
    return model


_VGG11 = {10: (93, 88, 92, 87, 53), 100: (87, 85, 90, 79, 49)}
TABLES: dict[str, Table] = {
    # Net2's maps shrink by unpadded convolutions, 60x60 after the first: its images are enlarged to 64x64.
    "3": Table(
        "Net2", net2.build, 64, {"startup_untrained": 20}, paper={10: (82, 69, 84, 88, 50), 100: (79, 64, 73, 89, 41)}
    ),
    "4": Table("VGG-11", vgg11.build, paper=_VGG11),
    "5": Table("AlexNet", alexnet, paper={10: (86, 84, 89, 81, 52), 100: (82, 79, 81, 78, 32)}),
    "6": Table("ResNet-50", resnet50, paper={10: (92, 89, 94, 89, 49), 100: (91, 87, 89, 59, 29)}),
    "10": Table(
        "VGG-11, no merging",
        vgg11.build,
        32,
        {"merge": False},
        paper={10: (95, 89, 93, 80, 60), 100: (86, 84, 91, 75, 53)},
    ),
    "11": Table(
        "VGG-11, no freezing",
        vgg11.build,
        32,
        {"freeze": False},
        paper={10: (94, 85, 90, 87, 54), 100: (87, 86, 87, 80, 48)},
    ),
    "12": Table(
        "VGG-11, no insertion",
        vgg11.build,
        32,
        {"insert": False},
        paper={10: (93, 88, 91, 81, 61), 100: (94, 89, 90, 74, 68)},
    ),
    "13": Table(
        "VGG-11, batch size",
        vgg11.build,
        batch_sizes=(16, 32, 64, 128),
        paper={16: (89, 84, 86, 63, 100), 32: (93, 82, 88, 88, 86), 64: (92, 89, 90, 86, 61), 128: _VGG11[10]},
    ),
}


NUMBERS = sorted(TABLES, key=int)

# Sixteen epochs: the threshold starts lower and falls faster than the paper's, and counts are scaled so that more
# filters qualify at it.
_SMALL = replace(
    PRESETS["quick"],
    startup_untrained=4,
    max_epochs=8,
    finetune_epochs=4,
    beta_start=0.6,
    beta_step=0.12,
    chi_s=8.0,
    lr=0.05,
    lr_halve_every=6,
)
_SMALL_BUILDS: dict[str, Callable[[int], nn.Module]] = {
    "3": partial(net2.build, width=0.25, size=32),
    "5": partial(alexnet, width=0.25),
    "6": quarter_resnet50,
}


def small(name: str) -> Table:
    """The table with quarter-width networks on images of side 32, a tenth of the epochs and batches of 64; for table 13
    its own batch sizes."""
    table = TABLES[name]
    changes = {key: value for key, value in table.changes.items() if key != "startup_untrained"}  # of 50 or 20
    build = _SMALL_BUILDS.get(name, partial(vgg11.build, width=0.25))
    sizes = table.batch_sizes if len(table.batch_sizes) > 1 else (64,)
    return replace(table, build=build, size=32, changes=changes, batch_sizes=sizes, settings=_SMALL)


def budget(name: str, table: Table) -> dict[str, Any]:
    """What the results file says of a table: its settings."""
    return {"table": int(name), "settings": asdict(replace(table.settings, **table.changes))}


def toy(name: str) -> Table:
    """The table with a few epochs and small batches (two of table 13's sizes), and Net2, of 30 billion multiply-adds an
    image, an eighth as wide: which only shows that its command runs to the end."""
    table = TABLES[name]
    phases = {"startup_untrained": 1, "max_epochs": 3, "min_epochs": 3, "finetune_epochs": 1, "lsep": 3}
    short = {**phases, "row_min": 20, "beta_start": 0.3, "chi_s": 8.0}  # so that filters are pruned within them
    build = partial(net2.build, width=0.125) if table.build is net2.build else table.build
    sizes = tuple(size // 8 for size in table.batch_sizes[-2:])
    return replace(table, build=build, changes={**table.changes, **short}, batch_sizes=sizes)


def run(table: Table, data: Data, training: TrainSettings, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The table's rows on one data set, one a batch size."""
    if data.input_shape[1] != table.size:
        data = with_input_shape(data, (3, table.size, table.size))
    rows = []
    for batch_size in table.batch_sizes:
        settings = replace(table.settings, **table.changes, batch_size=batch_size)
        column = batch_size if len(table.batch_sizes) > 1 else len(data.classes)
        rows.append(_one(table, settings, data, training, tell) | {"paper": table.paper.get(column)})
    return rows


def _one(
    table: Table, settings: AdapNetSettings, data: Data, training: TrainSettings, tell: Callable[[str], None]
) -> dict[str, Any]:
    began = time.perf_counter()
    seed_everything_(training.seed)
    model = table.build(len(data.classes)).to(choose_device(training.device))
    phases = Phases.of(settings, training, trained=False)
    example = torch.zeros(1, *data.input_shape, device=device_of(model))
    channels = capture(model, example)
    method = AdapNet(
        settings,
        classes=len(data.classes),
        steps_per_epoch=data.steps(phases.training),
        seed=training.seed,
    )

    def show(event: Any) -> None:
        if isinstance(event, PeriodEvent):
            tell(event.text)
        elif isinstance(event, EpochEvent):
            row = event.row
            tell(f"{row['phase']} {row['epoch']}  loss {row['train_loss']:.4f}  top-1 {row['train_top1']:.4f}")

    goals = GoalSettings()
    before = (channels.params(), channels.macs(), _filters(model))
    periods = Periods(Network(model, channels, example, show), method, Target.of(goals, channels))
    whole = TrainingPhases(model, data, periods, phases, DistillSettings(), trained=False)
    whole.run(on_event=show)
    after = (periods.channels.params(), periods.channels.macs(), _filters(model))
    top1, top2 = _top(model, data)
    return {
        "data": data.name,
        "classes": len(data.classes),
        "seed": training.seed,
        "batch_size": settings.batch_size,
        "train_top1": next(row["train_top1"] for row in reversed(whole.rows) if "train_top1" in row),
        "top1": top1,
        "top2": top2,
        **{f"{what}_removed": 1 - b / a for what, a, b in zip(("params", "macs", "filters"), before, after)},
        "epochs_phase2": method.epoch,
        "seconds": round(time.perf_counter() - began),
        "filters": {group.name: group.size for group in periods.channels.free},
    }


def _filters(model: nn.Module) -> int:
    return sum(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _top(model: nn.Module, data: Data) -> tuple[float, float]:
    """Top-1 and top-2 on the test set."""
    first = second = 0
    with evaluating(model), torch.no_grad():
        for x, y in data.passing(data.test, device=device_of(model)):
            hits = model(x).topk(2, dim=1).indices == y[:, None]
            first += int(hits[:, 0].sum())
            second += int(hits.sum())
    return first / len(data.test), second / len(data.test)


def table(results: dict[str, Any]) -> str:
    """The result of one table as Markdown, ours and the paper's."""
    return "\n".join([*_HEAD, *_lines(results)])


def text(found: list[dict[str, Any]]) -> str:
    """The results of several tables at the small scale as one, and what they are of."""
    if not found:
        return "(not measured yet)"
    one, missing = found[0], [number for number in NUMBERS if int(number) not in (each["table"] for each in found)]
    epochs = " + ".join(str(one["settings"][key]) for key in ("startup_untrained", "max_epochs", "finetune_epochs"))
    lines = [line for results in found for line in _lines(results)]
    return (
        "\n".join([*_HEAD, *lines]) + f"\n\nQuarter-width networks, {one['train_images']:,} training images, {epochs} "
        "epochs; per cent, mean ± standard deviation over the seeds, on the whole test set. The paper's figures are of "
        "whole networks, all images of CIFAR-10 and up to 120 epochs."
        f"{' Not run: ' + ', '.join(missing) + '.' if missing else ''} {one['machine']}; torch "
        f"{one['versions']['torch']}."
    )


_HEAD = (
    "| table | data, seeds | batch size | train | top-1 | top-2 | parameters, filters removed | epochs of changes "
    "| paper: train, top-1, top-2, removed, epochs |",
    "|---|---|---|---|---|---|---|---|---|",
)


def _lines(results: dict[str, Any]) -> list[str]:
    """A line for each data set and batch size, over its seeds."""
    number = str(results["table"])
    lines = []
    for data, batch_size in dict.fromkeys((row["data"], row["batch_size"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["data"], row["batch_size"]) == (data, batch_size)]
        accuracies = (_spread(rows, key) for key in ("train_top1", "top1", "top2"))
        gone = ", ".join(_spread(rows, key) for key in ("params_removed", "filters_removed"))
        epochs = statistics.mean(row["epochs_phase2"] for row in rows)
        paper = rows[0]["paper"]
        told = "–" if paper is None else f"{', '.join(map(str, paper[:3]))}, {paper[3]} %, {paper[4]}"
        cells = [f"{number}: {TABLES[number].title}", f"{data}, {len(rows)}", batch_size, *accuracies, gone]
        lines.append(f"| {' | '.join(map(str, [*cells, f'{epochs:.0f}', told]))} |")
    return lines


def _spread(rows: list[dict[str, Any]], key: str) -> str:
    values = [100 * row[key] for row in rows]
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
