"""Every runtime of `export --to`: outputs beside torch's, the dial, the work that is skipped, time and size.

    python -m benchmarks.runtimes --nets NETS --cifar folder:CIFAR --lite0 FILE --imagenette folder:IMAGENETTE \
        --fashion fashion-mnist:DIR --bccd DIR --out benchmarks/results/runtimes.json

Needs the extras openvino, litert, executorch and ncnn; what is missing is named in the result. Networks: ResNet-20 and
EfficientNet-Lite0 with published weights (--nets and --lite0 as in `benchmarks.real`), the digits sample, a
MobileNetV3-small that is trained here on Fashion-MNIST for a few minutes, and the backbone of the YOLO11n of
`benchmarks.detector` (its maps pooled; needs ultralytics), all on test images of their own. Without a data set or a
file its network is left out, and the result says so. Detached and routed networks are cut from the digits sample,
untrained. Writes cell by cell and goes on where it was broken off.

Times are processor time of one image, one thread, medians of rounds in which all runtimes take turns, torch too.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import compressor
from benchmarks import detector
from benchmarks.adapnet_small import subset
from benchmarks.export import warmed
from benchmarks.real import _lite0, _resnet
from benchmarks.resumable import opened
from benchmarks.stranger_resnet import resnet20
from compressor.errors import CompressorError
from compressor.exits.cutting import cut
from compressor.exits.settings import DetachSettings
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.package import export_package
from compressor.exporting.proof import Evidence
from compressor.exporting.quantize import SCHEMES
from compressor.exporting.run import Network, fed
from compressor.exporting.running import executed
from compressor.exporting.runtimes import RUNTIMES
from compressor.exporting.samples import agreement
from compressor.files.paths import write_json
from compressor.report.manifest import Manifest
from compressor.routing.network import make_routed, survey
from compressor.routing.settings import RouteSettings
from compressor.training.data import Data, open_data, with_input_shape
from compressor.training.loop import fit
from compressor.training.numerics import seed_everything_
from compressor.training.settings import DataSettings, TrainSettings
from compressor.vision import door as vision

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits_cnn.safetensors"
CALIBRATION = 128


@dataclass(frozen=True)
class Subject:
    """A network, images to compare and others to calibrate on."""

    module: nn.Module
    images: Tensor
    calibration: Tensor
    words: str
    scores: bool = True  # else maps


class Backbone(nn.Module):
    """A detector's layers before its neck: the maps that they hand on, pooled and in one row."""

    def __init__(self, layers: nn.Sequential, handed_on: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.handed_on = layers, handed_on

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to (batch, channels of all maps)."""
        maps = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.handed_on:
                maps.append(x.mean((2, 3)))
        return torch.cat(maps, 1)


_PHOTOGRAPHS = DataSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _digits(arguments: argparse.Namespace) -> Subject:
    return _of(compressor.load(DIGITS), open_data("digits"), arguments, "the sample's own weights")


def _published_resnet(arguments: argparse.Namespace) -> Subject:
    data = open_data(arguments.cifar, _PHOTOGRAPHS)
    return _of(_resnet(resnet20, "resnet20-12fca82f.th", arguments, data), data, arguments, "published weights")


def _published_lite0(arguments: argparse.Namespace) -> Subject:
    data = _sized(open_data(arguments.imagenette, _PHOTOGRAPHS), 224)
    return _of(_lite0(arguments, data), data, arguments, "published weights")


def _own_mobilenet(arguments: argparse.Namespace) -> Subject:
    """torchvision's network for one grey channel, trained here: no published weights of it are on the package index."""
    data = _sized(open_data(arguments.fashion), 64)
    seed_everything_(0)
    module = vision.build("mobilenet_v3_small", num_classes=10)
    first = module.get_submodule("features.0")
    assert isinstance(first, nn.Sequential)
    first[0] = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    fit(module, subset(data, 20_000, 0), TrainSettings(epochs=3, lr=0.05, device="cpu", evaluate_every=0))
    return _of(module, data, arguments, "trained here on 20,000 images of 64 pixels, 3 epochs")


def _published_backbone(arguments: argparse.Namespace) -> Subject:
    layers = detector._opened(str(arguments.nets / "yolo11n_bccd.pt")).model.float().model[:11]
    images = {part: torch.cat(detector._images(arguments.bccd / "images" / part, 320)) for part in ("train", "test")}
    module = Backbone(layers, (4, 6, 10)).eval()  # what its neck reads
    words = "test images, a stranger's weights; in place of classes the correlation with fp32's maps"
    return Subject(module, images["test"], images["train"][:CALIBRATION], words, scores=False)


# What is compared, each with the arguments that it needs.
NETWORKS: dict[str, tuple[tuple[str, ...], Callable[[argparse.Namespace], Subject]]] = {
    "digits_cnn": ((), _digits),
    "resnet20": (("nets", "cifar"), _published_resnet),
    "mobilenet_v3_small": (("fashion",), _own_mobilenet),
    "efficientnet_lite0": (("lite0", "imagenette"), _published_lite0),
    "backbone of yolo11n": (("nets", "bccd"), _published_backbone),
}
KINDS = "detached", "routed", "routed by image"


def _sized(data: Data, side: int) -> Data:
    return with_input_shape(data, (data.input_shape[0], side, side))


def _of(module: nn.Module, data: Data, arguments: argparse.Namespace, weights: str) -> Subject:
    images = data.examples(data.test, arguments.images)
    return Subject(module.eval(), images, data.examples(data.train, CALIBRATION), f"test images, {weights}")


def correlation(expected: np.ndarray, got: np.ndarray) -> float:
    """Of (images, channels), without each channel's mean over the images."""
    mean = expected.mean(0)
    return float(np.corrcoef((expected - mean).ravel(), (got - mean).ravel())[0, 1])


def turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor milliseconds, all ways in turn in every round, each called once before it is timed."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 3):
        for name, run in ways.items():
            run()
            start = time.process_time()
            run()
            if number >= 3:
                found[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(each) for name, each in found.items()}


def made(place: Path, runtime: str, subject: Subject, quantized: bool, chip: str) -> tuple[Manifest, Network] | str:
    """A network for a runtime; why not where that fails."""
    evidence = Evidence(subject.images[:64], subject.calibration, lambda run: 0.0)
    settings = PackageSettings(latency=False, runtime=runtime, int8=chip if quantized else None)  # type: ignore[arg-type]
    try:
        manifest = export_package(subject.module, subject.images[:1], place, evidence=evidence, settings=settings)
        return manifest, Network(place, 1)
    except CompressorError as error:
        return str(error)


def _static(name: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row for each runtime and precision: outputs over all images, milliseconds, bytes; or what is missing for it."""
    needed, subject_of = NETWORKS[name]
    missing = [f"--{each}" for each in needed if getattr(arguments, each) is None]
    if missing:
        return {"refused": f"without {' and '.join(missing)}"}
    subject = subject_of(arguments)
    rows, ways = [], dict[str, Callable[[], object]]()
    with torch.inference_mode():
        expected = torch.cat([subject.module(part) for part in subject.images.split(32)]).numpy()
    ways["torch"] = partial(_torch, subject.module, subject.images[:1])
    for runtime in arguments.runtimes:
        for precision in ("fp32", "int8")[: 1 + RUNTIMES[runtime].int8]:
            place, began = scratch / f"{runtime}-{precision}", time.perf_counter()
            found = made(place, runtime, subject, precision == "int8", arguments.chip)
            row: dict[str, Any] = {"runtime": runtime, "precision": precision}
            rows.append(row)
            if isinstance(found, str):
                row["refused"] = found
                continue
            manifest, network = found
            row["export_s"] = time.perf_counter() - began
            got = np.concatenate([network({"input": part.numpy()})[0] for part in subject.images.split(32)])
            row["max_rel"] = float(np.abs(got - expected).max() / np.abs(expected).max())
            row["agreement"] = (agreement if subject.scores else correlation)(expected, got)
            row["bytes"] = _bytes(place, manifest)
            ways[f"{runtime} {precision}"] = partial(network, {"input": subject.images[:1].numpy()})
            print(row, file=sys.stderr, flush=True)
    ms = turns(ways, arguments.rounds)
    for row in rows:
        row["ms"] = ms.get(f"{row['runtime']} {row['precision']}")
    rows.insert(0, {"runtime": "torch, eager", "precision": "fp32", "ms": ms["torch"]})
    return {"of": subject.words, "images": len(subject.images), "rows": rows}


def _torch(module: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module(image)
    return found


def _bytes(place: Path, manifest: Manifest) -> int:
    """Of the files of a package that a device needs to run the network."""
    needed = [
        name for name in manifest.files if Path(name).suffix not in (".py", ".npz") or name in manifest.graphs.values()
    ]
    return sum((place / name).stat().st_size for name in needed)


def _dynamic(kind: str, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A detached or a routed network on each runtime: every exit's outputs, and what ran for it."""
    torch.manual_seed(0)
    module, example = compressor.load(DIGITS), torch.zeros(1, 1, 8, 8)
    if kind == "detached":
        model: nn.Module = cut(module, example, DetachSettings(exits=2))[0]
    else:
        chain, units = survey(module, (1, 8, 8))
        model = make_routed(chain, units.units, RouteSettings(router="image" if kind == "routed by image" else "gates"))
    data = open_data("digits")
    images = data.examples(data.test, 64)
    subject = Subject(warmed(model), images, images, "")
    rows, ways = [], dict[str, Callable[[], object]]()
    for runtime in arguments.runtimes:
        place = scratch / runtime
        found = made(place, runtime, subject, False, arguments.chip)
        if isinstance(found, str):
            rows.append({"runtime": runtime, "refused": found})
            continue
        manifest, network = found
        exits = []
        for each in manifest.exits:
            feeds = {"input": images[:1].numpy(), **fed(each.feeds)}
            network.ran.clear()
            network(feeds)
            ran = {name: count for name, count in network.ran.items() if name != "model"}
            convolutions = _convolutions(runtime, place, manifest, each.number, list(ran))
            exits.append({"exit": each.number, "max_rel": each.max_rel, "files": list(ran),
                          "convolutions": convolutions, "promised": each.convolutions})  # fmt: skip
            ways[f"{runtime} {each.number}"] = partial(network, feeds)
        rows.append({"runtime": runtime, "bytes": _bytes(place, manifest), "exits": exits})
        print(rows[-1], file=sys.stderr, flush=True)
    ms = turns(ways, 10 * arguments.rounds)  # each takes a part of a millisecond
    for row in rows:
        for leaving in row.get("exits", ()):
            leaving["ms"] = ms[f"{row['runtime']} {leaving['exit']}"]
    return {"rows": rows}


def _convolutions(runtime: str, place: Path, manifest: Manifest, number: int, ran: list[str]) -> int | None:
    """Convolutions that ran for one image: by the runtime's own profiler where it has one, else those in the files that
    ran; None where OpenVINO computed garbage whenever it was looked at.
    """
    if runtime == "onnx":
        feeds = fed(manifest.exits[number].feeds)
        with np.load(place / manifest.sample["file"]) as sample:  # type: ignore[index]
            counts = executed(place / manifest.graphs["model"], {"input": sample["input"], **feeds})
        return sum(count for name, count in counts.items() if "Conv" in name)
    if runtime == "openvino":
        return openvino_convolutions(place, number)
    files = [place / manifest.graphs[name] for name in ran]
    if runtime == "litert":
        from ai_edge_litert.interpreter import Interpreter

        operators = [each["op_name"] for file in files for each in Interpreter(str(file))._get_ops_details()]
        return sum("CONV_2D" in name for name in operators)
    if runtime == "executorch":
        return sum(map(executorch_convolutions, files))
    words = {"ncnn": r"^Convolution", "torch": r"(?i)\bconv2d\("}[runtime]
    return sum(len(re.findall(words, file.read_text(), flags=re.MULTILINE)) for file in files)


def executorch_convolutions(file: Path) -> int:
    """Convolutions that XNNPACK and ExecuTorch's own operators executed for one image, in the dump of their events.

    Without depthwise ones: digits_cnn has none, and XNNPACK runs one for a gate's pooling.
    """
    from executorch.devtools import Inspector
    from executorch.extension.pybindings import portable_lib

    program = portable_lib._load_for_executorch(str(file), enable_etdump=True)
    program.forward([torch.zeros(program.method_meta("forward").input_tensor_meta(0).sizes())])
    with tempfile.TemporaryDirectory() as folder:
        dump = str(Path(folder) / "events.etdp")
        program.write_etdump_result_to_file(dump)
        blocks = Inspector(etdump_path=dump).event_blocks
    names = [event.name for block in blocks for event in block.events]
    return sum("convolution" in name.lower() and "DWConv" not in name for name in names)


_ONE_RUN = """
import sys
from pathlib import Path
import numpy as np
from compressor.exporting.run import Network, asked
place, number = Path(sys.argv[1]), sys.argv[2]
network = Network(place, 1)
sample = np.load(place / "sample.npz")
scores = network({"input": sample["input"], **asked(network.about, int(number))})[0]
sys.exit(int(not np.allclose(scores, sample["exit_" + number], atol=1e-3)))
"""
_TRIES = 50


def openvino_convolutions(place: Path, number: int) -> int | None:
    """Convolutions that oneDNN, which OpenVINO's CPU plugin runs them by, executed for one image, by its own log.

    While that is written, networks with branches often compute garbage or crash (OpenVINO 2026.4): only a run that
    gives the right scores counts. None where there is none.
    """
    command = [sys.executable, "-c", _ONE_RUN, str(place), str(number)]
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    for _ in range(_TRIES):
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ran.returncode == 0:
            return len(re.findall(r"^onednn_verbose,.*exec,cpu,convolution,", ran.stdout, flags=re.MULTILINE))
    return None


PACKAGES = ("openvino", "ai-edge-litert", "litert-torch", "executorch", "ncnn", "pnnx")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, help="folder with the published ResNets and the detector")
    parser.add_argument("--cifar", help="CIFAR-10, as --data takes it")
    parser.add_argument("--lite0", type=Path, help="the published weights of EfficientNet-Lite0")
    parser.add_argument("--imagenette", help="Imagenette, as --data takes it")
    parser.add_argument("--fashion", help="Fashion-MNIST, as --data takes it")
    parser.add_argument("--bccd", type=Path, help="folder with the blood cells")
    parser.add_argument("--images", type=int, default=10_000, help="test images of each network, at most")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--chip", default="x86", choices=SCHEMES, help="of INT8 for onnx and openvino")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS, *KINDS], choices=[*NETWORKS, *KINDS])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    told = {"rounds": arguments.rounds, "chip": arguments.chip, "runtimes": arguments.runtimes}
    result = opened(arguments.out, told, "cpu", 1)
    result["versions"] |= {name: _version(name) for name in PACKAGES}
    result |= {part: result.get(part, {}) for part in ("static", "dynamic")}
    result.pop("rows", None)
    for name in arguments.networks:
        part = "dynamic" if name in KINDS else "static"
        if "rows" in result[part].get(name, {}):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            result[part][name] = (_dynamic if name in KINDS else _static)(name, Path(scratch), arguments)
        result[part] = {each: result[part][each] for each in (*NETWORKS, *KINDS) if each in result[part]}
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
