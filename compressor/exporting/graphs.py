"""The graphs of a package as its runtime takes them, quantized where that is asked for; weights are stored once."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compressor.exporting.biases import correct_biases
from compressor.exporting.builds import build, modules
from compressor.exporting.compose import StageMaker
from compressor.exporting.flatten import OPSET, check_file
from compressor.exporting.forms import Form, form_of
from compressor.exporting.proof import Evidence
from compressor.exporting.quantize import Chip, QuantizingMaker
from compressor.exporting.runtimes import Runtime, written
from compressor.exporting.samples import images
from compressor.exporting.weights import WeightsFile
from compressor.report.manifest import WEIGHTS


@dataclass(frozen=True)
class PackageSettings:
    """How a package is written."""

    opset: int = OPSET
    separate: bool = False  # also a flat graph for each exit
    latency: bool = True  # measure each exit
    overwrite: bool = False  # a package that is there may be replaced
    runtime: str = "onnx"  # a row of RUNTIMES
    int8: Chip | None = None  # quantized for a chip; None: float32
    sign: str | None = None  # a private ed25519 key in a PEM file, for the manifest


def write_graphs(
    form: Form, evidence: Evidence, staging: Path, settings: PackageSettings, runtime: Runtime
) -> dict[str, str]:
    """Write what the runtime runs; returns the file of each graph."""
    made: dict[str, str] = {}
    if settings.int8 is not None and evidence.calibration is not None:
        chip = None if runtime.quantizer else settings.int8
        mended = form_of(correct_biases(form.module, evidence.calibration, chip), images(evidence.calibration, 1))
        form = replace(mended, names=form.names, gives=form.gives)
    if runtime.convert is not None:
        with tempfile.TemporaryDirectory() as folder:
            for name, file in _write_onnx(form, evidence, Path(folder), settings).items():
                made[name] = f"{name}{runtime.suffix}"
                written(runtime, runtime.convert, Path(folder) / file, staging / made[name])
        return made
    if runtime.write is None:
        return _write_onnx(form, evidence, staging, settings)
    int8 = settings.int8 is not None
    with torch.no_grad():
        for name, part, maps in modules(form, evidence.calibration if int8 else evidence.images[:2]):
            made[name] = f"{name}{runtime.suffix}"
            written(runtime, runtime.write, part, maps, staging / made[name], int8)
    return made


def _write_onnx(form: Form, evidence: Evidence, staging: Path, settings: PackageSettings) -> dict[str, str]:
    import onnx_ir as ir

    with WeightsFile(staging / WEIGHTS) as weights:
        if settings.int8 is None:
            maker, inputs = StageMaker(weights, settings.opset), images(evidence.images, 2)  # only their shapes matter
        else:
            maker, inputs = QuantizingMaker(weights, settings.opset, settings.int8), evidence.calibration
        graphs = build(form, inputs, maker, separate=settings.separate)
    files = {name: f"{name}.onnx" for name in graphs}
    for name, model in graphs.items():
        ir.save(model, staging / files[name])
        check_file(staging / files[name])
    return files
