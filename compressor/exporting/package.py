"""A package: one folder with everything a device needs to run a model, written only after its proof.

model.onnx      the graph, some kilobytes
weights.bin     every weight once
manifest.json   inputs, classes, exits with cost and accuracy, hash of every file; also inside model.onnx
run_onnx.py     classifies an image with numpy, onnxruntime and pillow alone
preparation.py  brings an image to what the network takes, for run_onnx.py
"""

import os
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from compressor.errors import FileError, UsageError
from compressor.exporting.builds import build
from compressor.exporting.evidence import Demands, Evidence, prove, routing_facts
from compressor.exporting.flat import OPSET, check_file, check_opset
from compressor.exporting.forms import Form, form_of
from compressor.exporting.quantize import Chip, QuantizingMaker, facts
from compressor.exporting.runtime import open_session
from compressor.exporting.samples import portable, reference_of
from compressor.exporting.stages import StageMaker
from compressor.exporting.staging import folder_beside, move_folder
from compressor.exporting.verify import check_package
from compressor.exporting.weights import WeightsFile
from compressor.report.manifest import (
    MANIFEST,
    METADATA_KEY,
    MODEL,
    PREPARATION,
    RUNNER,
    WEIGHTS,
    Card,
    Manifest,
    file_facts,
    input_facts,
    read_manifest,
)
from compressor.vision import preparation


@dataclass(frozen=True)
class PackageSettings:
    """How a package is written."""

    opset: int = OPSET
    separate: bool = False  # also a flat graph for each exit
    latency: bool = True  # measure each exit
    overwrite: bool = False  # a package that is there may be replaced
    int8: Chip | None = None  # quantized for a chip; None: float32
    max_drop: float | None = None  # of top-1 by quantization, in 0..1, of any exit


def export_package(
    module: nn.Module,
    example: Tensor,
    folder: str | os.PathLike[str],
    *,
    card: Card | None = None,
    evidence: Evidence | None = None,
    settings: PackageSettings | None = None,
) -> Manifest:
    """Write a model as a package, after every exit was compared with torch, counted and timed on ONNX Runtime.

    The folder appears whole and checked or not at all; the module is untouched.

    Args:
        example: an image (1, channels, height, width); its values do not matter.
        card: class names and normalisation, for the manifest.
        evidence: real images to compare on, others to calibrate a quantizer on, and what measures top-1; without it
            the comparison is on random images, and there is no quantization.

    Raises:
        UsageError: the folder holds something, no such opset, or nothing to calibrate on.
        ModelError: the model does not run on the example, takes several inputs, or torch cannot export it.
        CompressorError: an exit computes something else than torch, or more or less than it promises, or loses more
            accuracy by quantization than it may.
        FileError: the folder cannot be written.

    Example:
        manifest = export_package(module, torch.zeros(1, 3, 32, 32), "deploy", card=Card(classes=("cat", "dog")))
        manifest.exits[0].latency_ms["median"]      # 0.84
    """
    settings, target = settings or PackageSettings(), Path(folder)
    check_opset(settings.opset)
    outdated = check_target(target, overwrite=settings.overwrite)
    form = form_of(reference_of(module), portable(example))
    evidence = (evidence or Evidence()).on(portable(example))
    assert evidence.images is not None
    if settings.int8 is not None and (evidence.calibration is None or evidence.score is None):
        raise UsageError("quantization needs images to calibrate on and to measure the accuracy on: give --data")
    with folder_beside(target) as staging:
        _write_graphs(form, evidence, staging, settings)
        demands = Demands(settings.separate, settings.latency, settings.int8 is not None, settings.max_drop)
        exits = prove(form, evidence, staging, demands)
        calibration = evidence.calibration
        manifest = Manifest(
            kind=form.kind,
            input=input_facts(tuple(evidence.images.shape[1:]), card or Card()),
            outputs=tuple(entry.name for entry in open_session(staging / MODEL, level="off").get_outputs()),
            exits=exits,
            classes=None if card is None else card.classes,
            choice=form.choice,
            routing=routing_facts(form, evidence.score, staging, exits),
            opset=settings.opset,
            checked_on=evidence.words,
            quantization=None if not settings.int8 or calibration is None else facts(settings.int8, len(calibration)),
            made_with={name: version(name) for name in ("compressor", "torch", "onnx", "onnxruntime")},
            history=() if card is None else card.history,
        )
        manifest = finish(staging, manifest)
        move_folder(staging, target, last=MANIFEST, outdated=outdated)
    return manifest


def check_target(target: Path, *, overwrite: bool) -> tuple[str, ...]:
    """The files of an earlier package that go when a new one comes in its place.

    Raises:
        UsageError: the place is taken, by a file, by something else than a package, or without leave to replace it.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file: give --out the name of a folder, or of a .onnx file")
    if not target.exists() or not any(target.iterdir()):
        return ()
    if not overwrite:
        raise UsageError(f"{target} is not empty: give another --out, or --overwrite to replace the package in it")
    try:
        return tuple(name for name in read_manifest(target).files if name == Path(name).name)
    except FileError as error:
        raise UsageError(f"{target} holds something else than a package: give another --out") from error


def finish(staging: Path, manifest: Manifest) -> Manifest:
    """Put the manifest into the graphs and beside them, with the script; then check the folder as a user would."""
    import onnx

    write_runner(staging)
    inside = replace(manifest, files={WEIGHTS: file_facts(staging / WEIGHTS)}).text()
    for file in sorted(staging.glob("*.onnx")):
        model = onnx.load(file, load_external_data=False)
        onnx.helper.set_model_props(model, {METADATA_KEY: inside})
        onnx.save(model, file)
    names = sorted(file.name for file in staging.iterdir() if file.name != MANIFEST)
    manifest = replace(manifest, files={name: file_facts(staging / name) for name in names})
    (staging / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    for file in staging.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    with tempfile.TemporaryDirectory() as copies:
        return check_package(staging, manifest, Path(copies), everything=False, own=True)


def write_runner(folder: Path) -> None:
    """The script, and the code beside it that prepares images."""
    script = Path(__file__).with_name(RUNNER).read_text(encoding="utf-8")
    script = script.replace("from compressor.vision.preparation import", "from preparation import")
    (folder / RUNNER).write_text(script, encoding="utf-8")
    code = Path(preparation.__file__).read_text(encoding="utf-8")
    (folder / PREPARATION).write_text(code, encoding="utf-8")


def _write_graphs(form: Form, evidence: Evidence, staging: Path, settings: PackageSettings) -> None:
    import onnx

    with WeightsFile(staging / WEIGHTS) as weights, tempfile.TemporaryDirectory(dir=staging) as scratch:
        if settings.int8 is None:
            maker, images = StageMaker(weights, Path(scratch), settings.opset), evidence.images
            images = None if images is None else images[:2]  # only their shapes matter
        else:
            maker = QuantizingMaker(weights, Path(scratch), settings.opset, settings.int8)
            images = evidence.calibration
        assert images is not None
        graphs = build(form, images, maker, separate=settings.separate)
    for name, model in graphs.items():
        onnx.save(model, staging / name)
        check_file(staging / name)
