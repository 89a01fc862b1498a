"""CPU seconds of our engine and of Torch-Pruning on one network; run as a module it answers names with our times.

It imports nothing but the engine, so that an earlier state of it can stand in (benchmarks/surgery.py, `--before`).
"""

import copy
import gc
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.networks import build
from compressor.graph import capture
from compressor.pruning.oneshot import decide
from compressor.pruning.settings import PruneSettings
from compressor.surgery import operate_


def timed(job: Callable[[nn.Module, torch.Tensor], None], model: nn.Module, example: torch.Tensor) -> tuple[float, str]:
    model = copy.deepcopy(model).eval()
    gc.collect()
    start = time.process_time()
    try:
        job(model, example)
    except Exception as error:  # the peer's failures are results
        return time.process_time() - start, f"{type(error).__name__}: {str(error)[:200]}"
    return time.process_time() - start, ""


def ours(model: nn.Module, example: torch.Tensor) -> None:
    channels = capture(model, example)
    settings = PruneSettings(method="l1", ratio=0.5, allocate="uniform")
    operate_(model, decide(model, channels, settings).plan, channels)


def theirs(model: nn.Module, example: torch.Tensor) -> None:
    import torch_pruning

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    pruner = torch_pruning.pruner.MagnitudePruner(model, example, importance, pruning_ratio=0.5, ignored_layers=last)
    pruner.step()


def main() -> None:
    """For every line with a network and a number of rounds the times and errors of our engine, as JSON."""
    for line in sys.stdin:
        name, rounds = line.split()
        model, example = build(name)
        print(json.dumps([timed(ours, model, example) for _ in range(int(rounds))]), flush=True)


if __name__ == "__main__":
    main()
