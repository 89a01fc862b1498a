"""INT8 against float32: time of a ResNet-18, and accuracy of a network that was trained, each exit of it.

    python -m benchmarks.int8 --out benchmarks/results/int8.json        # some minutes

The ResNet-18 has random weights, which change neither work nor size: as float32, with the settings of `--chip x86`, and
with the defaults of ONNX Runtime's quantizer. Times are the CPU time of the one thread that runs, batch 1, all in turn
in one process, medians. Accuracy is that of a small network on the test images of `digits` after `compressor detach`.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import compressor
from benchmarks.export import runner, sizes, times, warmed
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.onnx import export_onnx
from compressor.exporting.package import export_package
from compressor.exporting.proof import Evidence
from compressor.report.environment import device_words, versions
from compressor.vision import door as vision

SHAPE = (3, 224, 224)
DIGITS = Path(__file__).parents[1] / "sample_models" / "digits_cnn.safetensors"


def by_defaults(source: Path, target: Path, images: Tensor) -> None:
    """What `quantize_static` makes of a file when it is told nothing."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        pieces = iter(images.split(8))

        def get_next(self) -> Any:
            piece = next(self.pieces, None)
            return None if piece is None else {"input": piece.numpy()}

    quantization.quantize_static(source, target, Reader())


def speed(place: Path, rounds: int, count: int) -> dict[str, Any]:
    """A ResNet-18 as float32 and in INT8: milliseconds and bytes."""
    module = warmed(vision.models.resnet18(num_classes=10))
    images = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    flat, defaults, package = place / "flat.onnx", place / "defaults.onnx", place / "package"
    export_onnx(module, images[:1], flat)
    by_defaults(flat, defaults, images)
    evidence = Evidence(images[:8], images, lambda run: 0.0)  # random weights are right about nothing
    settings = PackageSettings(latency=False, int8="x86")
    export_package(module, images[:1], package, evidence=evidence, settings=settings)
    files = {"float32": (flat,), "defaults": (defaults,), "x86": (package / "model.onnx", package / "weights.bin")}
    ms = times({name: runner(each[0], {}, SHAPE) for name, each in files.items()}, rounds)
    return {name: {"ms": ms[name], "bytes": sizes(*each)} for name, each in files.items()}


def accuracy(place: Path, epochs: int) -> list[dict[str, Any]]:
    """Every exit of a detached network on the test images, before and after."""
    run = place / "detached"
    compressor.detach(DIGITS, exits=2, data="digits", epochs=epochs, latency=False, onnx=False, out=run)
    made = compressor.export(run / "model.safetensors", place / "int8", precision="int8", data="digits", latency=False)
    assert made.manifest is not None
    return [asdict(each) for each in made.manifest.exits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, default=32, help="that the ResNet-18 is calibrated on")
    parser.add_argument("--epochs", type=int, default=5, help="of the detached network")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        result = {
            "what": "ResNet-18 at 224x224 with random weights, batch 1, one thread; digits_cnn with two sub-models",
            "command": f"python -m benchmarks.int8 --rounds {given.rounds} --images {given.images} "
            f"--epochs {given.epochs} --out {given.out}",
            "machine": device_words(),
            "versions": versions(),
            "rounds": given.rounds,
            "runs": 1,
            "seeds": [0],
            "resnet18": speed(Path(scratch), given.rounds, given.images),
            "digits": accuracy(Path(scratch), given.epochs),
        }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
