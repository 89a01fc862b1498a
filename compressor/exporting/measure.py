"""Time the layers of a network on the machine that this file lies on: python measure.py [THREADS].

Needs numpy and onnxruntime alone. It reads layers.json beside it and writes table.json, which goes back to where the
network is pruned: compressor prune ... --target-ms MS --table table.json.
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROUNDS = (9, 60)  # a layer runs at least and at most so often
SECONDS = 0.02  # and for so long, if that is within
PASSES = 2  # over all layers: what disturbs one of them has passed by the next


def machine() -> str:
    """The processor's name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def profiled(model: Any, feeds: dict[str, np.ndarray], threads: int, seconds: float = SECONDS) -> dict[str, float]:
    """Milliseconds of every operator of a graph (a path, or its bytes), summed by the operator's name."""
    sums: dict[str, float] = {}
    for operator, ms in node_times(model, feeds, threads, seconds).values():
        sums[operator] = sums.get(operator, 0.0) + ms
    return sums


def node_times(
    model: Any, feeds: dict[str, np.ndarray], threads: int, seconds: float = SECONDS
) -> dict[str, tuple[str, float]]:
    """Operator and milliseconds of every node that runs, by its name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        began, runs = time.perf_counter(), 0
        while runs < ROUNDS[0] or (runs < ROUNDS[1] and time.perf_counter() - began < seconds):
            session.run(None, feeds)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault(event["name"], (event["args"]["op_name"], []))[1].append(event["dur"] / 1e3)
    return {  # what else the machine does makes a run longer, never shorter
        name.removesuffix("_kernel_time"): (operator, min(times)) for name, (operator, times) in found.items()
    }


def layer_ms(model: Any, shape: tuple[int, ...], threads: int) -> float:
    """Milliseconds of the one layer of a graph, without what re-orders its input and output."""
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    times = profiled(model, {"x": image}, threads)
    return without_reorders(times)


def without_reorders(times: dict[str, float]) -> float:
    """The sum of operators' milliseconds but for those that re-order an input or output."""
    return sum(ms for operator, ms in times.items() if not operator.startswith("Reorder"))


def main() -> None:
    """Read layers.json, time every layer, write table.json."""
    here, threads = Path(__file__).resolve().parent, int(sys.argv[1]) if len(sys.argv) > 1 else 1
    read = json.loads((here / "layers.json").read_text(encoding="utf-8"))
    samples = [sample for row in read["layers"] for sample in row["samples"]]
    best = [float("inf")] * len(samples)
    for passed in range(PASSES):
        for number, (_, _, file, shape) in enumerate(samples):
            best[number] = min(best[number], layer_ms(str(here / file), tuple(shape), threads))
            print(f"\r{passed * len(samples) + number + 1} of {PASSES * len(samples)}", end="", file=sys.stderr)
    for sample, ms in zip(samples, best):
        sample[2:] = [ms]
    whole = read.pop("whole")
    image = np.random.default_rng(0).standard_normal(whole["shape"]).astype(np.float32)
    read["whole"] = profiled(str(here / whole["file"]), {whole["input"]: image}, threads, 1.0)
    runtime = f"onnxruntime {onnxruntime.__version__}"
    read["machine"] = {"chip": machine(), "runtime": runtime, "threads": threads, "batch": whole["shape"][0]}
    (here / "table.json").write_text(json.dumps(read, indent=1), encoding="utf-8")
    print(f"\nwrote {here / 'table.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
