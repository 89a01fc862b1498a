"""Our engine against Torch-Pruning on the same networks: how many can be pruned, and how fast.

    python -m benchmarks.surgery zoo   --out benchmarks/results/zoo.json      # one process a network and tool
    python -m benchmarks.surgery speed --out benchmarks/results/speed.json    # same process, medians
    python -m benchmarks.surgery editing --out benchmarks/results/speed.json  # plans applied in the middle of training

`zoo` prunes half of every free group and holds the result against the masked original (ours), merges and inserts in
every group and asks that the outputs stay (edits), or asks that the result runs and is smaller (theirs). `speed` times
capture, plan and application against building their graph and pruning the same ratio by magnitude. Both can be
interrupted and go on where they stopped. `editing` times plans of AdapNet's kinds on a ResNet-50 that trains with
momentum: one for each group in turn, as AdapNet makes them, and one for all, beside a plain copy of the same tensors.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import SPEED, TIMM, torchvision_names
from benchmarks.one_network import TOOLS, alone, build
from benchmarks.surgery_timed import ours, theirs, timed
from compressor.graph import capture
from compressor.graph.channels import Group
from compressor.report.environment import device_words, versions
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from compressor.surgery.edits import Edit

LIMIT = 100  # seconds of one CPU, a network and tool


def zoo(out: Path, only: str) -> None:
    names = [f"torchvision:{name}" for name in torchvision_names()] + [f"timm:{name}" for name in TIMM]
    result = _opened(
        out, {"what": "half of every free group pruned, random weights", "limit_cpu_s": LIMIT, "networks": {}}
    )
    for name in names:
        row = result["networks"].setdefault(name, {})
        for tool in TOOLS:
            if tool not in row and only in (tool, "all"):
                row[tool] = alone(LIMIT, TOOLS[tool], name)
                print(f"{name:45} {tool:14} {row[tool]['status']:8} {row[tool].get('failures') or ''}", flush=True)
                out.write_text(json.dumps(result, indent=1) + "\n")
    for tool in TOOLS:
        rows = [row[tool] for row in result["networks"].values() if tool in row]
        print(
            tool,
            {
                status: sum(row["status"] == status for row in rows)
                for status in ("pruned", "edited", "whole", "failed", "crashed")
            },
        )


def speed(out: Path, rounds: int, wanted: list[str], before: Path | None) -> None:
    """Medians of CPU seconds by tool; where there is an earlier state of the project, it is timed too."""
    what = "CPU seconds: capture + plan + apply, against graph + prune, L1, half"
    result = _opened(out, {"what": what, "networks": {}}) | {"of": len(wanted or SPEED), "rounds": rounds}
    earlier = _Earlier(before) if before is not None else None
    for name in wanted or SPEED:
        if name in result["networks"]:
            continue
        model, example = build(name)
        pairs = [(timed(ours, model, example), timed(theirs, model, example)) for _ in range(rounds)]  # in turn
        times = dict(zip(("ours", "torch_pruning"), zip(*pairs, strict=True), strict=True))
        if earlier is not None:
            times["before"] = earlier.times(name, rounds)
        row: dict[str, Any] = {tool: statistics.median(seconds for seconds, _ in each) for tool, each in times.items()}
        row |= {f"{tool}_error": each[0][1] for tool, each in times.items() if each[0][1]}
        row["ratio"] = row["torch_pruning"] / row["ours"]
        result["networks"][name] = row
        past = f"before {row['before']:7.2f} s  " if "before" in row else ""
        print(f"{name:34} ours {row['ours']:7.2f} s  {past}theirs {row['torch_pruning']:7.2f} s  {row['ratio']:6.1f}x")
        out.write_text(json.dumps(result, indent=1) + "\n")


class _Earlier:
    """An earlier `compressor` in another folder, which a process of its own times, network by network."""

    def __init__(self, root: Path) -> None:
        paths = os.pathsep.join([str(root), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.surgery_timed"],
            env=os.environ | {"PYTHONPATH": paths},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def times(self, name: str, rounds: int) -> list[tuple[float, str]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{name} {rounds}\n")
        self._process.stdin.flush()
        found: list[tuple[float, str]] = json.loads(self._process.stdout.readline())
        return found


def editing(out: Path, rounds: int) -> None:
    """Prune a sixteenth of a group, merge a pair, insert a channel: CPU seconds of `operate_` alone."""
    alone: list[float] = []
    together, copying = [], []
    for _ in range(rounds):
        model, example = build("torchvision:resnet50")
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9)
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()  # as the pipeline does before a plan
        channels = capture(model, example)
        for name in [group.name for group in channels.free]:
            start = time.process_time()
            channels = operate_(model, Plan(_edits(channels.group(name))), channels, optimizer)
            alone.append(time.process_time() - start)
        plan = Plan(tuple(edit for group in channels.free for edit in _edits(group)))
        start = time.process_time()
        buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
        copies = [tensor.detach().clone() for tensor in [*model.parameters(), *buffers]]
        copying.append(time.process_time() - start)
        del buffers, copies
        start = time.process_time()
        operate_(model, plan, channels, optimizer)
        together.append(time.process_time() - start)
    found = {
        "what": "CPU seconds of one plan (prune a sixteenth, merge a pair, insert one) on ResNet-50 with momentum",
        "groups": len(alone) // rounds,
        "one_group_median": statistics.median(alone),
        "one_group_largest": max(alone),
        "all_groups_at_once_median": statistics.median(together),
        "plain_copy_median": statistics.median(copying),
        "rounds": rounds,
        "machine": device_words("cpu"),
        "versions": versions(),
    }
    print(found)
    result = _opened(out, {"networks": {}})
    out.write_text(json.dumps(result | {"editing": found}, indent=1) + "\n")


def _edits(group: Group) -> tuple[Edit, ...]:
    ids = group.ids.tolist()
    share = max(1, len(ids) // 16)
    keep, drop, after = ids[share : share + 3]
    return (
        Prune(group.name, tuple(ids[:share]), "benchmark"),
        Merge(group.name, keep, drop, "benchmark"),
        Insert(group.name, after, "benchmark", columns="split"),
    )


def _opened(out: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    if out.exists():
        return json.loads(out.read_text())
    out.parent.mkdir(parents=True, exist_ok=True)
    import torch_pruning

    machine = {"machine": device_words("cpu"), "threads": torch.get_num_threads(), "versions": versions()}
    return fresh | machine | {"torch_pruning": torch_pruning.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["zoo", "speed", "editing"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=[*TOOLS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=[], help="for speed, as torchvision:resnet18")
    parser.add_argument("--before", type=Path, help="a folder with an earlier compressor to time beside ours")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # the libraries' own, on old networks
    if arguments.job == "zoo":
        zoo(arguments.out, arguments.only)
    elif arguments.job == "editing":
        editing(arguments.out, arguments.rounds)
    else:
        speed(arguments.out, arguments.rounds, arguments.networks, arguments.before)


if __name__ == "__main__":
    main()
