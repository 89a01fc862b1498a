"""Packages against flat files and against earlyon: bytes on the disk, memory, and time for each exit.

    python -m benchmarks.export --out benchmarks/results/export.json        # some minutes

`detach`: VGG-16 for 32x32 with four sub-models (batch norms of their own) as one package, as tuned by
`compressor tune`, and as five flat files of their own. `route`: ResNet-18 at 224x224 with three exits, behind layer2,
layer3 and at the end, as a package, as three flat files, and as earlyon (PyPI; `pip install earlyon`) exports them.

Weights are random: they change neither work nor size. Times are the CPU time of the one thread that runs, batch 1, all
ways in turn in one process, medians; ratios carry between machines. Memory is the proportional set size (PSS) that
opening and running every exit adds to a fresh process, measured before any other process has the files open.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.exits.cutting import cut
from compressor.exits.settings import DetachSettings
from compressor.exporting.forms import AtDepth
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.onnx import export_onnx
from compressor.exporting.package import export_package
from compressor.exporting.runtime import Level, open_session
from compressor.exporting.tune import tune_package
from compressor.report.environment import device_words, versions
from compressor.report.manifest import TUNED_MODEL, ExitFacts, Manifest, fed
from compressor.routing.network import make_routed, survey
from compressor.routing.settings import RouteSettings
from compressor.vision import door as vision
from sample_models.vgg16_cifar import build

EXITS = ("layer2", "layer3", "layer4")  # of the ResNet; earlyon's own choice

_PSS = """
import json, sys
import numpy, onnxruntime
def pss():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
def opened(file, level):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.add_session_config_entry("optimization.disable_specified_optimizers", sys.argv[2])
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    for feeds in exits or [{}]:
        chosen = {name: numpy.asarray(each, type(each) is int and numpy.int64 or numpy.float32)
                  for name, each in feeds.items()}
        session.run(None, {"input": numpy.zeros((1, *shape), numpy.float32), **chosen})
    return session
exits = json.loads(sys.argv[3])
before = pss()
sessions = [opened(file, sys.argv[1]) for file in sys.argv[4:]]
print((pss() - before) * 1024)
"""


def memory(files: list[Path], level: str, disabled: str = "", manifest: Manifest | None = None) -> int:
    """Bytes of proportional set size that sessions on the files add to a process; with a manifest every exit runs."""
    exits = [each.feeds for each in manifest.exits] if manifest is not None else []
    command = [sys.executable, "-c", _PSS, level, disabled, json.dumps(exits), *map(str, files)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def runner(file: Path, feeds: Mapping[str, Any], shape: tuple[int, ...], outputs: list[str] | None = None,
           level: Level | None = None) -> Callable[[], object]:  # fmt: skip
    """One image through a file, by one thread."""
    session = open_session(file, threads=1, level=level)
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    return lambda: session.run(outputs, {"input": image, **feeds})


def times(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of the calling thread, all ways in turn in every round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, run in ways.items():
            start = time.thread_time()
            run()
            if number >= 2:
                found[name].append(1e3 * (time.thread_time() - start))
    return {name: statistics.median(each) for name, each in found.items()}


def sizes(*files: Path) -> int:
    return sum(file.stat().st_size for file in files)


def warmed(module: nn.Module) -> nn.Module:
    """Batch norms with statistics that differ from model to model, as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def packaged(module: nn.Module, example: Tensor, place: Path) -> Manifest:
    export_package(module, example, place, settings=PackageSettings(latency=False, separate=True))
    return tune_package(place, latency=False)


def held_by(place: Path, flat: list[Path], manifest: Manifest) -> dict[str, int]:
    """Bytes held by flat files of every exit, by the package, and by the tuned package."""
    return {
        "flat": memory(flat, "ORT_ENABLE_ALL"),
        "package": memory([place / "model.onnx"], "ORT_ENABLE_ALL", manifest=manifest),
        "tuned": memory([place / TUNED_MODEL], "ORT_DISABLE_ALL", manifest=manifest),
    }


def ways_of(place: Path, file: Path, each: ExitFacts, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """One exit by its flat file, by the package, and by the tuned package."""
    return {
        "flat": runner(file, {}, shape),
        "package": runner(place / "model.onnx", fed(each.feeds), shape),
        "tuned": runner(place / TUNED_MODEL, fed(each.feeds), shape),
    }


def detach(scratch: Path, rounds: int) -> dict[str, Any]:
    """VGG-16 with four sub-models."""
    torch.manual_seed(0)
    example, shape = torch.zeros(1, 3, 32, 32), (3, 32, 32)
    model, _ = cut(build(), example, DetachSettings(exits=4))
    warmed(model)
    place = scratch / "vgg"
    manifest = packaged(model, example, place)
    flat = [scratch / f"vgg_{each.number}.onnx" for each in manifest.exits]
    for each, file in zip(manifest.exits, flat):
        export_onnx(model.detach(each.number), example, file)
    read = [place / str(each.file) for each in manifest.exits]
    shared = manifest.session["least memory"]["optimization.disable_specified_optimizers"]
    held = {
        **held_by(place, flat, manifest),
        "least memory": memory([place / "model.onnx"], "ORT_ENABLE_EXTENDED", shared, manifest),
        "five flat graphs, least memory": memory(read, "ORT_ENABLE_EXTENDED", shared),
        "five flat graphs, default": memory(read, "ORT_ENABLE_ALL"),
    }
    rows = []
    for each, file in zip(manifest.exits, flat):
        ways = {
            **ways_of(place, file, each, shape),
            "least memory": runner(place / "model.onnx", fed(each.feeds), shape, level="extended"),
        }
        rows.append({"exit": each.name, "macs": each.macs, "ms": times(ways, rounds)})
    return {
        "disk": {
            "flat": sizes(*flat),
            "package": sizes(place / "model.onnx", place / "weights.bin"),
            "package, --exits separate": sizes(place / "model.onnx", place / "weights.bin", *read),
        },
        "memory": held,
        "exits": rows,
    }


def route(scratch: Path, rounds: int) -> dict[str, Any]:
    """ResNet-18 with three exits, and earlyon's."""
    torch.manual_seed(0)
    example, shape = torch.zeros(1, 3, 224, 224), (3, 224, 224)
    chain, found = survey(vision.build("resnet18", num_classes=10), shape)
    last = [max(unit.index for unit in found.units if unit.name.startswith(name)) for name in EXITS]
    model = make_routed(chain, found.units, RouteSettings(leave_after=tuple(last)))
    warmed(model)
    place = scratch / "resnet"
    manifest = packaged(model, example, place)
    peer, why = earlyon(scratch / "earlyon.onnx")
    flat = [scratch / f"resnet_{each.number}.onnx" for each in manifest.exits]
    for each, file in zip(manifest.exits, flat):
        export_onnx(AtDepth(model, each.number, router=False), example, file)
    disk = {"flat": sizes(*flat), "package": sizes(place / "model.onnx", place / "weights.bin")}
    held = held_by(place, flat, manifest)
    if peer is not None:
        disk["earlyon"], held["earlyon"] = sizes(peer), memory([peer], "ORT_ENABLE_ALL")
    rows = []
    for each, file in zip(manifest.exits, flat):
        ways = ways_of(place, file, each, shape)
        if peer is not None:
            output = ["exit_0", "exit_1", "final"][each.number]
            ways["earlyon"] = runner(peer, {}, shape, outputs=[output])
        rows.append({"exit": EXITS[each.number], "macs": each.macs, "ms": times(ways, rounds)})
    return {"disk": disk, "memory": held, "exits": rows, "earlyon": why}


def earlyon(file: Path) -> tuple[Path | None, str]:
    """Its own ResNet-18 with three exits in its own ONNX export, and its version; or None and why not."""
    try:
        from earlyon.models import resnet18_ee
        from earlyon.onnx import export_to_onnx
    except ImportError as error:
        return None, f"not run: {error}"
    peer = warmed(resnet18_ee(num_classes=10, pretrained=False))
    export_to_onnx(peer, file)
    return file, metadata.version("earlyon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        result = {
            "what": "random weights, batch 1, one thread; CPU milliseconds of the thread, medians of all ways in turn",
            "command": f"python -m benchmarks.export --rounds {given.rounds} --out {given.out}",
            "machine": device_words(),
            "versions": versions(),
            "rounds": given.rounds,
            "runs": 1,
            "seeds": [0],
            "memory_in": "a process alone, after every exit ran",
            "detach": detach(Path(scratch), given.rounds),
            "route": route(Path(scratch), given.rounds),
        }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
