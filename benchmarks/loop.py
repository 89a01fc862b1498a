"""What `compressor.Pruner` adds to the steps of a plain training loop.

    python -m benchmarks.loop --batch 64 --rounds 3 --out benchmarks/results/loop.json

ResNet-20 for CIFAR-10 on random images, SGD with momentum; processor time. In a quiet step all that a pruner adds is
its `step`: the median of its time over that of the rest. Where it looks at the batch (AdapNet at 8 of a period, taylor
at 8 before each round) it adds to the passes as well: two copies take the step in turn, one with a pruner and one
without, and given is the median of the ratios. `end_seconds` is what a pruning step takes. Each interval begins with a
new copy, so that no network is smaller than the other.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from compressor import Pruner
from compressor.report.environment import device_words, versions
from sample_models import resnet_cifar

INTERVAL = 24  # steps, of which a pruner looks at 8
ARMS: dict[str, dict[str, Any]] = {
    "taylor": {"target_macs": 0.5, "steps": INTERVAL, "every": INTERVAL},
    "adapnet": {"lsep": INTERVAL, "max_epochs": 3, "steps": 3 * INTERVAL},
}


class Loop:
    """A network, its optimizer, and a step that anyone would write."""

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.model, self.x, self.y = model.train(), x, y
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(self, pruner: Pruner | None = None) -> tuple[float, float]:
        """Processor seconds of one step, and of the pruner's part after it."""
        began = time.process_time()
        functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        rest = time.process_time()
        if pruner is not None:
            pruner.step()
        return rest - began, time.process_time() - rest


def measured(method: str, start: nn.Module, x: torch.Tensor, y: torch.Tensor, rounds: int) -> dict[str, Any]:
    """What a pruner adds to a step, as a share of it, over some intervals."""
    added: dict[str, list[float]] = {"quiet": [], "watched": []}
    ends: list[float] = []
    for _ in range(rounds):
        plain, pruned = (Loop(copy.deepcopy(start), x, y) for _ in range(2))
        pruner = Pruner(pruned.model, x[:1], pruned.optimizer, method, **ARMS[method])
        for number in range(INTERVAL):
            watched = bool(pruned.model._forward_hooks) or bool(next(pruned.model.parameters())._backward_hooks)
            first, second = (plain, pruned) if number % 2 else (pruned, plain)
            took = {each: each.step(pruner if each is pruned else None) for each in (first, second)}
            rest, own = took[pruned]
            if number == INTERVAL - 1:
                ends.append(own)
            elif number > 1:  # the first ones warm up
                added["watched" if watched else "quiet"].append(
                    (rest + own) / took[plain][0] - 1 if watched else own / rest
                )
    return {
        **{name: round(statistics.median(found), 4) for name, found in added.items()},
        "steps": {name: len(found) for name, found in added.items()},
        "end_seconds": round(statistics.median(ends), 3),
    }


def main() -> None:
    """Measure every arm and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    start = resnet_cifar.build(10, depth=20)
    x, y = torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,))
    result = {
        "network": "ResNet-20, 32x32",
        "batch": given.batch,
        "rounds": given.rounds,
        "seed": 0,
        "machine": device_words(torch.device("cpu")),
        "versions": versions(),
        "arms": {method: measured(method, start, x, y, given.rounds) for method in ARMS},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["arms"], indent=1))


def words(result: dict[str, Any]) -> str:
    """What each method adds, in a sentence."""
    arms = result["arms"]
    quiet, watched = ([arms[arm][key] for arm in ("taylor", "adapnet")] for key in ("quiet", "watched"))
    ends = [arms[arm]["end_seconds"] for arm in ("taylor", "adapnet")]
    rounds = "one run" if result["rounds"] == 1 else f"{result['rounds']} runs"
    return (
        f"{result['network']}, batches of {result['batch']}: a step in between takes {quiet[0]:.2%} (taylor) or "
        f"{quiet[1]:.2%} (AdapNet) longer than one of the plain loop, a batch that is looked at {watched[0]:.0%} or "
        f"{watched[1]:.0%}, and the end of an interval {ends[0]:.1f} s or {ends[1]:.1f} s; {rounds} of each. "
        f"{result['machine']}."
    )


if __name__ == "__main__":
    main()
