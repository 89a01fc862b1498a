"""Every runtime of `export --to`: outputs beside torch's, the dial, the work that is skipped, time and size.

    python -m benchmarks.runtimes --nets NETS --cifar folder:CIFAR --lite0 FILE --imagenette folder:IMAGENETTE \
        --out benchmarks/results/runtimes.json

Needs the extras openvino, litert, executorch and ncnn; what is missing is named in the result. Networks: ResNet-20 and
EfficientNet-Lite0 with published weights and the digits sample, on their test images; MobileNetV3-small and the
backbone of an FPN (ResNet-18, its maps pooled) with random weights. Without a data set or a file its network is left
out, and the result says so. Detached and routed networks are cut from the digits sample, untrained.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import compressor
from benchmarks.export import warmed
from benchmarks.real import _lite0, _resnet
from benchmarks.stranger_resnet import resnet20
from compressor.errors import CompressorError
from compressor.exits.cutting import cut
from compressor.exits.settings import DetachSettings
from compressor.exporting.package import PackageSettings, export_package
from compressor.exporting.proof import Evidence, agreement, executed
from compressor.exporting.run import Network, fed
from compressor.exporting.runtimes import RUNTIMES
from compressor.files.paths import write_json
from compressor.report.environment import device_words, versions
from compressor.report.manifest import Manifest
from compressor.routing.network import make_routed, survey
from compressor.routing.settings import RouteSettings
from compressor.training.data import open_data, with_input_shape
from compressor.training.settings import DataSettings
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


class Backbone(nn.Module):
    """The maps of a ResNet-18, pooled and in one row, as a detector's neck takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = vision.build("resnet18")

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to (batch, 896)."""
        body, maps = self.body, []
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        x = body.layer1(x)
        for layer in (body.layer2, body.layer3, body.layer4):
            x = layer(x)
            maps.append(x.mean((2, 3)))
        return torch.cat(maps, 1)


def subjects(arguments: argparse.Namespace) -> Iterator[tuple[str, Subject | str]]:
    """The static networks by name, or why one is left out."""
    photographs = DataSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    yield "digits_cnn", _of(compressor.load(DIGITS), "digits", DataSettings(), 0, arguments)
    if arguments.nets and arguments.cifar:
        found = _resnet(resnet20, "resnet20-12fca82f.th", arguments, None)  # type: ignore[arg-type]
        yield "resnet20", _of(found, arguments.cifar, photographs, 0, arguments)
    else:
        yield "resnet20", "--nets or --cifar was not given"
    if arguments.lite0 and arguments.imagenette:
        found = _lite0(arguments, None)  # type: ignore[arg-type]
        yield "efficientnet_lite0", _of(found, arguments.imagenette, photographs, 128, arguments)
    else:
        yield "efficientnet_lite0", "--lite0 or --imagenette was not given"
    noise = torch.Generator().manual_seed(0)
    for name, module, side in (
        ("mobilenet_v3_small", vision.build("mobilenet_v3_small"), 224), ("backbone of resnet18", Backbone(), 160),
    ):  # fmt: skip
        images = torch.randn(arguments.images, 3, side, side, generator=noise)
        yield name, Subject(warmed(module), images, images[:CALIBRATION], "noise, random weights")


def _of(module: nn.Module, spec: str, loading: DataSettings, side: int, arguments: argparse.Namespace) -> Subject:
    data = open_data(spec, loading)
    data = with_input_shape(data, (data.input_shape[0], side, side)) if side else data
    images = data.examples(data.test, arguments.images)
    return Subject(module.eval(), images, data.examples(data.train, CALIBRATION), "test images, published weights")


def turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor milliseconds, all ways in turn in every round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 3):
        for name, run in ways.items():
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


def static(subject: Subject, scratch: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each runtime and precision: outputs over all images, milliseconds, bytes."""
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
            _, network = found
            row["export_s"] = time.perf_counter() - began
            got = np.concatenate([network({"input": part.numpy()})[0] for part in subject.images.split(32)])
            row["max_rel"] = float(np.abs(got - expected).max() / np.abs(expected).max())
            row["agreement"] = agreement(expected, got)
            row["bytes"] = sum((place / name).stat().st_size for name in _weights(found[0]))
            ways[f"{runtime} {precision}"] = partial(network, {"input": subject.images[:1].numpy()})
            print(row, file=sys.stderr, flush=True)
    ms = turns(ways, arguments.rounds)
    for row in rows:
        row["ms"] = ms.get(f"{row['runtime']} {row['precision']}")
    return [{"runtime": "torch, eager", "precision": "fp32", "ms": ms["torch"]}, *rows]


def _torch(module: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module(image)
    return found


def _weights(manifest: Manifest) -> list[str]:
    """The files of a package that a device needs to run the network."""
    return [name for name in manifest.files if Path(name).suffix not in (".py", ".npz") or name == "model.py"]


def dynamic(kind: str, scratch: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
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
    rows = []
    for runtime in arguments.runtimes:
        place = scratch / f"{kind}-{runtime}"
        found = made(place, runtime, subject, False, arguments.chip)
        if isinstance(found, str):
            rows.append({"runtime": runtime, "refused": found})
            continue
        manifest, network = found
        exits = []
        image = {"input": images[:1].numpy()}
        ms = turns(
            {str(e.number): partial(network, {**image, **fed(e.feeds)}) for e in manifest.exits}, arguments.rounds
        )
        for each in manifest.exits:
            network.ran.clear()
            network({**image, **fed(each.feeds)})
            ran: Any = {name: count for name, count in network.ran.items() if name != "model"}
            if runtime == "onnx":
                counts = executed(place / manifest.graphs["model"], fed(each.feeds), image["input"])
                ran = {"convolutions": sum(count for name, count in counts.items() if "Conv" in name)}
            elif runtime == "openvino":
                ran = {"convolutions": openvino_convolutions(place, each.number)}
            exits.append({"exit": each.number, "max_rel": each.max_rel, "ms": ms[str(each.number)], "ran": ran,
                          "promised": each.convolutions})  # fmt: skip
        rows.append({"runtime": runtime, "exits": exits})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


_ONE_RUN = """
import sys
from pathlib import Path
import numpy as np
from compressor.exporting.run import Network, asked
place = Path(sys.argv[1])
network = Network(place, 1)
image = np.load(place / "sample.npz")["input"]
network({"input": image, **asked(network.about, int(sys.argv[2]))})
"""


def openvino_convolutions(place: Path, number: int) -> int:
    """Convolutions that oneDNN, which OpenVINO's CPU plugin runs them by, executed for one image, by its own log."""
    command = [sys.executable, "-c", _ONE_RUN, str(place), str(number)]
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"^onednn_verbose,.*exec,cpu,convolution,", told, flags=re.MULTILINE))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, help="folder with the published ResNets")
    parser.add_argument("--cifar", help="CIFAR-10, as --data takes it")
    parser.add_argument("--lite0", type=Path, help="the published weights of EfficientNet-Lite0")
    parser.add_argument("--imagenette", help="Imagenette, as --data takes it")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--chip", default="x86", help="of INT8 for onnx and openvino")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--networks", nargs="+", help="these alone")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packages = ("openvino", "ai-edge-litert", "litert-torch", "executorch", "ncnn", "pnnx")
    result: dict[str, Any] = {
        "machine": device_words("cpu"), "versions": versions() | {name: _version(name) for name in packages},
        "images": arguments.images,
        "rounds": arguments.rounds, "chip": arguments.chip, "static": {}, "dynamic": {},
    }  # fmt: skip
    for name, subject in subjects(arguments):
        if arguments.networks and name not in arguments.networks:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows = subject if isinstance(subject, str) else static(subject, Path(scratch), arguments)
        result["static"][name] = {"refused": rows} if isinstance(rows, str) else {"of": subject.words, "rows": rows}
        write_json(arguments.out, result)
    for kind in ("detached", "routed", "routed by image"):
        if arguments.networks and kind not in arguments.networks:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            result["dynamic"][kind] = dynamic(kind, Path(scratch), arguments)
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
