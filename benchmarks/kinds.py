"""Fifteen small trained networks of different kinds: is least squares ever worse, and are sensitivities right?

    python -m benchmarks.kinds --data fashion-mnist:DIR

Each is trained here on Fashion-MNIST at 14 x 14 pixels, then cut to half of its multiply-adds: the same channels gone,
batch norm measured anew (networks without any: as cut) against least squares on the same unlabelled images; and by l1
without data, as cut and refitted on images made up. Then each group alone loses 10, 30 and 50 % of its channels and is
refitted: the rank correlation of how far that moves the outputs with what `inspect --sensitivity` predicts. Every
figure is of test images. Writes benchmarks/results/kinds.json and goes on where it was broken off.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.adapnet_small import subset
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.pruning.oneshot import decide, rank, sensitivity
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings
from compressor.runs.apply import apply_plan_
from compressor.runs.second_look import ranked
from compressor.surgery import Plan, Prune, operate_
from compressor.training.batch_norm import recalibrate_
from compressor.training.data import Data, open_data, with_input_shape
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import seed_everything_
from compressor.training.settings import TrainSettings

OUT = Path(__file__).parent / "results" / "kinds.json"
SIDE, TRAIN, TEST, INPUTS = 14, 10000, 2000, 256


def conv(inputs: int, outputs: int, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


def block(inputs: int, outputs: int, kernel: int = 3, act: Callable[[], nn.Module] = nn.ReLU, **more: Any) -> nn.Module:
    """Convolution, batch norm, activation."""
    return nn.Sequential(conv(inputs, outputs, kernel, bias=False, **more), nn.BatchNorm2d(outputs), act())


class Sum(nn.Module):
    """A residual block."""

    def __init__(self, *layers: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.norm = nn.Sequential(*layers), norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.norm(x))


class Joined(nn.Module):
    """Branches side by side, behind each other as channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.second(functional.silu(self.first(x.mean((2, 3), keepdim=True)))).sigmoid()


class Attention(nn.Module):
    """Self-attention over tokens (batch, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.query_key_value, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(*parts.unbind()).transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """Patches of an image as (batch, tokens, width), with their places."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIDE // patch) ** 2, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.places


class Mean(nn.Module):
    """Over all dimensions behind the channels, or over tokens."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self, layer: nn.Module, between: nn.Module) -> None:
        super().__init__()
        self.layer, self.between = layer, between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self.layer(self.between(self.layer(x))))


def classifier(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(width, 10))


def _inverted(width: int) -> nn.Module:
    wide = 3 * width
    return Sum(
        block(width, wide, 1, nn.ReLU6),
        block(wide, wide, act=nn.ReLU6, groups=wide),
        *(conv(wide, width, 1, bias=False), nn.BatchNorm2d(width)),
    )


def _mixer(width: int) -> list[nn.Module]:
    norms = [nn.LayerNorm(width) for _ in range(2)]
    wide = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
    return [Sum(Attention(width, 4), norm=norms[0]), Sum(*wide, norm=norms[1])]


def _u_net() -> nn.Module:
    inner = [nn.MaxPool2d(2), block(16, 32), nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU()]
    return classifier(block(1, 16), Joined(nn.Identity(), nn.Sequential(*inner)), block(32, 32, stride=2), width=32)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain, batch norm": lambda: classifier(block(1, 16), block(16, 24, stride=2), block(24, 32), width=32),
    "plain, no norm": lambda: classifier(
        *(conv(1, 16), nn.ReLU(), conv(16, 24, stride=2), nn.ReLU(), conv(24, 32), nn.ReLU()), width=32
    ),
    "residual": lambda: classifier(
        block(1, 24, stride=2),
        *(Sum(block(24, 24), conv(24, 24, bias=False), nn.BatchNorm2d(24)) for _ in range(2)),
        *(nn.ReLU(), block(24, 32)),
        width=32,
    ),
    "residual, no norm": lambda: classifier(
        *(conv(1, 24, stride=2), nn.ReLU()),
        *(Sum(conv(24, 24), nn.ReLU(), conv(24, 24)) for _ in range(2)),
        *(nn.ReLU(), conv(24, 32), nn.ReLU()),
        width=32,
    ),
    "residual, batch norm first": lambda: classifier(
        conv(1, 24, stride=2),
        *(Sum(nn.BatchNorm2d(24), nn.ReLU(), block(24, 24), conv(24, 24)) for _ in range(2)),
        *(nn.BatchNorm2d(24), nn.ReLU()),
        width=24,
    ),
    "grouped": lambda: classifier(
        block(1, 32, stride=2), block(32, 32, groups=4), block(32, 32, 1), block(32, 32, groups=4), width=32
    ),
    "depthwise, inverted": lambda: classifier(
        block(1, 16, stride=2, act=nn.ReLU6), _inverted(16), _inverted(16), block(16, 32, 1), width=32
    ),
    "squeeze and excitation": lambda: classifier(
        *(block(1, 16, stride=2, act=nn.SiLU), block(16, 32, act=nn.SiLU), Squeeze(32)),
        *(block(32, 32, act=nn.Hardswish), Squeeze(32)),
        width=32,
    ),
    "dense connections": lambda: classifier(
        block(1, 16, stride=2),
        *(Joined(nn.Identity(), block(width, 12)) for width in (16, 28, 40)),
        block(52, 32, 1),
        width=32,
    ),
    "branches": lambda: classifier(
        block(1, 16, stride=2),
        Joined(block(16, 12, 1), block(16, 12), nn.Sequential(block(16, 12, 1), block(12, 12, 5))),
        Joined(block(36, 16, 1), block(36, 16)),
        width=32,
    ),
    "transposed": _u_net,
    "group norm, a layer twice": lambda: classifier(
        *(conv(1, 24, stride=2), nn.GroupNorm(4, 24), nn.ReLU(), Twice(conv(24, 24), nn.ReLU()), conv(24, 32)),
        nn.ReLU(),
        width=32,
    ),
    "attention": lambda: nn.Sequential(
        Tokens(2, 32), *_mixer(32), *_mixer(32), nn.LayerNorm(32), Mean(1), nn.Linear(32, 10)
    ),
    "multilayer perceptron": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(SIDE * SIDE, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    ),
    "one dimension": lambda: nn.Sequential(
        nn.Flatten(1, 2),
        *(nn.Conv1d(SIDE, 32, 3, padding=1, bias=False), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Conv1d(32, 32, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv1d(32, 32, 3, padding=1), nn.LeakyReLU(0.1)),
        *(nn.Flatten(), nn.Linear(32 * SIDE, 10)),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    data = with_input_shape(subset(open_data(arguments.data), TRAIN, 0, TEST), (1, SIDE, SIDE))
    name = arguments.data.partition(":")[0]
    told = {"data": name, "side": SIDE, "train_images": TRAIN, "test_images": TEST, "epochs": arguments.epochs}
    result = opened(arguments.out, told, "cpu", torch.get_num_threads())
    done = {row["network"] for row in result["rows"]}
    for name in arguments.networks:
        if name not in done:
            result["rows"].append({"network": name} | measure(NETWORKS[name], data, arguments.epochs))
            write_json(arguments.out, result)
            print(json.dumps(result["rows"][-1]), file=sys.stderr, flush=True)
    print(table(result))


def measure(build: Callable[[], nn.Module], data: Data, epochs: int) -> dict[str, Any]:
    """One network: trained, cut in four ways, and each of its groups alone."""
    start = time.process_time()
    seed_everything_(0)
    dense = build()
    fit(dense, data, TrainSettings(epochs=epochs, device="cpu", evaluate_every=0, schedule="cosine"))
    dense.eval()
    example = torch.zeros(1, *data.input_shape)
    inputs = [x for x, _ in data.drawn(data.train, 512, 0, torch.device("cpu"))]
    channels = capture(dense, example)

    def top1(model: nn.Module) -> float:
        return evaluate(model, data.test, data).top1

    def cut(plan: Any, **given: Any) -> nn.Module:
        model = copy.deepcopy(dense)
        apply_plan_(model, plan, channels, example, **given)
        return model

    half = PruneSettings(method="obs", allocate="error", target_macs=0.5, round_to=1)
    plan = decide(dense, channels, half, Given(inputs=inputs), judge=ranked).plan
    remeasured = copy.deepcopy(dense)
    operate_(remeasured, plan, channels)
    recalibrate_(remeasured, data.train, data)
    by_weights = decide(dense, channels, PruneSettings(method="l1", target_macs=0.5, round_to=1)).plan
    row = {
        "dense": top1(dense),
        "batch_norm": top1(remeasured),
        "least_squares": top1(cut(plan, inputs=inputs)),
        "as_cut_l1": top1(cut(by_weights)),
        "without_data_l1": top1(cut(by_weights, inputs="synthetic")),
    }
    predicted, found = _moved(dense, channels, example, inputs[: INPUTS // 128], data.examples(data.test, 512))
    return row | {
        "spearman": float(scipy.stats.spearmanr(predicted, found).statistic),
        "groups": len(channels.free),
        "predicted": predicted,
        "found": found,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


@torch.no_grad()
def _moved(
    dense: nn.Module, channels: Channels, example: Tensor, inputs: list[Tensor], test: Tensor
) -> tuple[list[float], list[float]]:
    """How far the outputs go, in shares of their variance, for every group and share: predicted and really."""
    before, predicted, found = dense(test), [], []
    scores = rank(dense, channels, PruneSettings(method="obs", allocate="uniform"), Given(inputs=inputs)).scores.values
    for name, moved in sensitivity(dense, channels, inputs).items():
        group = channels.group(name)
        for share, error in moved.items():
            gone = group.ids[scores[name].argsort()[: max(1, round(share * group.size))]]
            small = copy.deepcopy(dense)
            apply_plan_(small, Plan((Prune(name, tuple(gone.tolist()), ""),)), channels, example, inputs=inputs)
            predicted.append(error)
            found.append(float((small(test) - before).square().sum() / (before - before.mean(0)).square().sum()))
    return predicted, found


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"{len(result['rows'])} of {len(NETWORKS)} kinds of networks on {result['data']} at {SIDE} x {SIDE} pixels, "
        "half of the multiply-adds gone, not "
        f"trained afterwards: top-1 in per cent on {TEST:,} test images. {result['machine']}.",
        "",
        "| network | dense | batch norm anew | least squares | l1, no data: as cut | refitted | rank correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = ("dense", "batch_norm", "least_squares", "as_cut_l1", "without_data_l1")
    for row in result["rows"]:
        cells = [f"{100 * row[key]:.1f}" for key in keys]
        lines.append(f"| {row['network']} | {' | '.join(cells)} | {row['spearman']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
