"""Prune half of every free group of one network and check it against the masked original; prints one JSON line.

    python -m benchmarks.one_network torchvision:resnet18 [--tool ours|edits|torch_pruning]

`edits` merges and inserts in every group and checks that the outputs stay; `torch_pruning` runs its magnitude pruner.
Called by benchmarks/surgery.py, one process a network.
"""

import argparse
import json
import math
import multiprocessing
import resource
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import build
from compressor.graph import Channels, capture
from compressor.graph.trace import call_arguments
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from compressor.surgery.edits import Edit
from tests.equivalence import (
    duplicate_,
    half_plan,
    left_out,
    masked_outputs,
    outputs,
    randomise_,
    relative_error,
    same_map,
)


def ours(name: str) -> dict[str, Any]:
    model, example = build(name)
    return halved(randomise_(model), example.double(), torch.cat([example, example]).double())


def halved(model: nn.Module, example: Any, training: Any) -> dict[str, Any]:
    """Half of every free group pruned and held against the masked original; what is left has to run on `training`."""
    start = time.perf_counter()
    channels = capture(model, example)
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "free": len(channels.free),
        "groups": len(channels.groups),
        "convolutions": convolutions(model, channels),
    }
    row["reasons"] = Counter(channels.frozen.values()).most_common(5)
    missed = left_out(model, example, channels)
    if not channels.free:
        return row | {"status": "whole"}
    plan = half_plan(channels)
    reference = masked_outputs(model, example, channels, plan.removed)  # first: some networks keep what they computed
    before = outputs(model, example)
    start = time.perf_counter()
    updated = operate_(model, plan, channels)
    row["seconds"] += time.perf_counter() - start
    row["error"] = _apart(outputs(model, example), reference)
    row["control"] = _apart(before, reference)
    row["macs_left"] = channels.macs(plan.removed) / max(1, channels.macs())
    again = capture(model, example)
    failures = {
        f"neither free nor frozen: {missed[:3]}": missed,
        "output differs from the masked original": row["error"] > 1e-5,
        "the control does not differ from it": row["control"] < 1e3 * row["error"] + 1e-9,
        "parameters not as promised": sum(p.numel() for p in model.parameters()) != channels.params(plan.removed),
        "MACs not as promised": again.macs() != channels.macs(plan.removed),
        "another capture sees another map": same_map(updated, again) is not None,
        "does not run in training mode": not _trains(model, training),
    }
    row["failures"] = [text for text, failed in failures.items() if failed]
    return row | {"status": "failed" if row["failures"] else "pruned"}


def edits(name: str) -> dict[str, Any]:
    """A copy inserted and taken out again, two equal channels merged: in every group at once, the outputs unchanged.

    A copy that readers see through zeros is pruned, one that shares its master's columns by halves is merged with it:
    either way every tensor must be as it was, bit for bit.
    """
    model, example = build(name)
    example = example.double()
    channels = capture(randomise_(model), example)
    groups = [group for group in channels.free if group.prune_only is None]
    row: dict[str, Any] = {"groups": len(groups), "prune_only": len(channels.free) - len(groups)}
    row["reasons"] = Counter(group.prune_only for group in channels.free if group.prune_only).most_common(5)
    if not groups:
        return row | {"status": "whole", "failures": []}
    before, weights = outputs(model, example), {key: value.clone() for key, value in model.state_dict().items()}
    errors, failures = [], []
    for columns in ("zero", "split"):
        masters = {group.name: int(group.ids[0]) for group in groups}
        plan = Plan(tuple(Insert(group, master, "copy", columns=columns) for group, master in masters.items()))
        grown = operate_(model, plan, channels)
        errors.append(relative_error(outputs(model, example), before))
        back: list[Edit] = []
        for group in groups:
            (new,) = set(grown.group(group.name).ids.tolist()) - set(group.ids.tolist())
            pruned = Prune(group.name, (new,), "back")
            back.append(pruned if columns == "zero" else Merge(group.name, masters[group.name], new, "back"))
        channels = operate_(model, Plan(tuple(back)), grown)
        now = model.state_dict()
        if not all(torch.equal(weights[key], now[key]) for key in weights):
            failures.append(f"a copy with columns by {columns} was taken out and left a trace")
    pairs = {group.name: duplicate_(model, channels, group.name) for group in groups}
    before = outputs(model, example)
    operate_(model, Plan(tuple(Merge(group, *pair, "equal") for group, pair in pairs.items())), channels)
    errors.append(relative_error(outputs(model, example), before))
    if max(errors) > 1e-5:
        failures.append("outputs change")
    return row | {"errors": errors, "failures": failures, "status": "failed" if failures else "edited"}


def convolutions(model: nn.Module, channels: Channels) -> dict[str, float]:
    """Of the multiply-adds of all convolutions, the share of those of which something may go: channels that they make
    or read (`editable`), or that they make (`made`).
    """
    free = np.zeros(channels.next_id, dtype=bool)
    for group in channels.free:
        free[group.ids] = True
    total, editable, made = 0, 0, 0
    for cost in channels.costs:
        layer = model.get_submodule(cost.module)
        if isinstance(layer, nn.modules.conv._ConvNd):
            macs = cost.factor * math.prod(map(len, cost.axes))
            rows = channels.identities.get((f"{cost.module}.weight", 1 if layer.transposed else 0))
            total += macs
            editable += macs * any(free[axis].any() for axis in cost.axes)
            made += macs * (rows is not None and bool(free[rows].any()))
    return {"macs": total, "editable": editable / max(1, total), "made": made / max(1, total)}


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Relative error of what is not counted or named by number; 1 where there is another number of something."""
    ours, theirs = ([each for each in given if each.is_floating_point()] for given in (ours, theirs))
    same = [each.shape for each in ours] == [each.shape for each in theirs]
    return relative_error(ours, theirs) if same else 1.0


def _trains(model: nn.Module, example: Any) -> bool:
    arguments, keywords = call_arguments(example, model)
    try:
        model.train()(*arguments, **keywords)
    except (RuntimeError, ValueError, AssertionError, TypeError):
        return False
    return True


def peer(name: str) -> dict[str, Any]:
    """The same ratio by magnitude with Torch-Pruning; succeeds when the result runs and is smaller."""
    import torch_pruning

    model, example = build(name)
    model.eval()
    size = sum(p.numel() for p in model.parameters())
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1:]
    start = time.perf_counter()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=last,
    )
    pruner.step()
    seconds = time.perf_counter() - start
    outputs(model, example)
    left = sum(p.numel() for p in model.parameters()) / size
    broken = [] if _trains(model, example) else ["does not run in training mode"]
    return {"seconds": seconds, "params_left": left, "failures": broken, "status": "pruned" if left < 0.95 else "whole"}


TOOLS = {"ours": ours, "edits": edits, "torch_pruning": peer}


def row_of(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What one of `TOOLS`, or another such function, gives: its status, failures and numbers as plain types."""
    warnings.filterwarnings("ignore")  # the libraries' own, on old networks
    try:
        return work(*given)
    except Exception as error:  # a crash is a result of this benchmark
        return {"status": "crashed", "failures": [f"{type(error).__name__}: {str(error)[:300]}"]}


def alone(limit: int, work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """The same in a process of its own, forked so that the libraries are imported once; its memory goes when it ends.

    `limit` are seconds of one CPU: what else the machine does must not decide.
    """
    forked = multiprocessing.get_context("fork")
    here, there = forked.Pipe(duplex=False)
    process = forked.Process(target=_send, args=(there, limit, work, *given))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
        return found
    except EOFError:
        process.join()
        slow = process.exitcode == -signal.SIGXCPU
        return {"status": "crashed", "failures": [f"took longer than {limit} s" if slow else "the process died"]}
    finally:
        process.kill()
        process.join()


def _send(there: Connection, limit: int, work: Callable[..., dict[str, Any]], *given: Any) -> None:
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + limit, used + limit + 5))
    there.send(row_of(work, *given))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--tool", choices=list(TOOLS), default="ours")
    arguments = parser.parse_args()
    print(json.dumps(row_of(TOOLS[arguments.tool], arguments.name)))
