"""Everything that a GPU should show, in at most eight minutes, written as it goes.

    python -m benchmarks.gpu --nets DIR --data cifar10-jpeg=folder:DIR --out benchmarks/results/gpu

The parts run one after another, each in a process of its own with what is left of the time; OUT/gpu.json says how
each ended and what it said last, and the parts leave their own result files beside it. Called again, it does what is
missing.

* the tests that need a CUDA device
* training and evaluation against plain loops, and what AdapNet adds to an epoch (benchmarks.training)
* ResNet-56 with its published weights at half the MACs: 60 epochs of fine-tuning, and AdapNet in as many
* two processes: on two cards a run of them, on one card the line that refuses it
* rows of `benchmarks.real --full`, as many as fit
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compressor.report.environment import device_words, versions
from compressor.training.numerics import choose_device

RESNET56 = ("--arch", "benchmarks/stranger_resnet.py:resnet56")
NORMALIZED = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


@dataclass(frozen=True)
class Part:
    """One command of the program, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    seconds: float


def parts(nets: Path, data: str, out: Path, device: str) -> Iterator[Part]:
    """What is done, the most telling first."""
    spec = data.partition("=")[2]
    python, run = (sys.executable, "-m"), (sys.executable, "-m", "compressor")
    yield Part("tests", (*python, "pytest", "-q", "-m", "gpu"), 90)
    speed = ("benchmarks.training", "--data", spec, "--images", "10240", "--rounds", "3", "--workers", "8")
    yield Part("training", (*python, *speed, "--device", device, "--out", str(out / "training.json")), 90)
    weights = str(nets / "resnet56-4bfd9763.th")
    common = (
        weights,
        *RESNET56,
        *NORMALIZED,
        "--data",
        spec,
        "--target-macs",
        "0.5",
        "--device",
        device,
        "--overwrite",
    )
    fine = (*common, "--epochs", "60", "--out", str(out / "resnet56"))
    yield Part("resnet56", (*run, "prune", *fine), 150)
    adapnet = ("--method", "adapnet", "--preset", "short", "--max-epochs", "30", "--finetune-epochs", "30")
    yield Part("resnet56-adapnet", (*run, "prune", *common, *adapnet, "--out", str(out / "resnet56-adapnet")), 200)
    two = (*python, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "compressor")
    tuned = ("finetune", weights, *RESNET56, *NORMALIZED, "--data", spec, "--epochs", "2", "--overwrite")
    yield Part("two processes", (*two, *tuned, "--out", str(out / "two")), 60)
    rows = ("benchmarks.real", "--networks", "resnet20", "--nets", str(nets), "--data", data, "--full")
    yield Part("real", (*python, *rows, "--device", device, "--out", str(out)), 480)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, help="folder with the published ResNets")
    parser.add_argument("--data", required=True, metavar="NAME=SPEC", help="cifar10-jpeg=folder:DIR")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--only", nargs="+", help="parts by name")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, began = arguments.out / "gpu.json", time.monotonic()
    result = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    result |= {"machine": device_words(choose_device(arguments.device)), "versions": versions()}
    for part in parts(arguments.nets, arguments.data, arguments.out, arguments.device):
        left = arguments.seconds - (time.monotonic() - began)
        done = result["parts"].get(part.name, {}).get("code") == 0
        if done or (arguments.only and part.name not in arguments.only) or left < 5:
            continue
        result["parts"][part.name] = carried_out(part, min(left, part.seconds))
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(part.name, result["parts"][part.name]["code"], flush=True)


def carried_out(part: Part, seconds: float) -> dict[str, object]:
    """How a part ended (124: its time was over), how long it took and the end of what it said."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(part.command, stdout=told, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 124
            process.terminate()  # torchrun ends what it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        told.seek(0)
        said = told.read().decode(errors="replace")
    return {"code": code, "seconds": round(time.monotonic() - began, 1), "said": said[-2000:]}


if __name__ == "__main__":
    main()
