"""A package: one folder with everything a device needs to run a model, written only after its proof.

model.onnx      the graph, some kilobytes
weights.bin     every weight once
manifest.json   inputs, classes, exits with cost and accuracy, hash of every file; also inside model.onnx
run_onnx.py     classifies an image with numpy and onnxruntime alone
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import FileError, UsageError
from compressor.exporting.builds import build, flat_name
from compressor.exporting.flat import OPSET, check_file, check_opset
from compressor.exporting.forms import Form, cost_of, form_of
from compressor.exporting.manifest import (
    MANIFEST,
    METADATA_KEY,
    MODEL,
    RUNNER,
    WEIGHTS,
    Card,
    ExitFacts,
    Manifest,
    file_facts,
    input_facts,
    read_manifest,
)
from compressor.exporting.parity import Array
from compressor.exporting.proof import PROOF_IMAGES, Runner, count_convolutions, latencies, parity
from compressor.exporting.runtime import open_session
from compressor.exporting.samples import portable, random_like, reference_of
from compressor.exporting.stages import StageMaker
from compressor.exporting.staging import folder_beside, move_folder
from compressor.exporting.verify import verify_package
from compressor.exporting.weights import WeightsFile

Score = Callable[[Callable[[Array], Array]], float]  # what runs one exit -> its top-1 on the test images


@dataclass(frozen=True)
class PackageSettings:
    """How a package is written."""

    opset: int = OPSET
    separate: bool = False  # also a flat graph for each exit
    latency: bool = True  # measure each exit
    overwrite: bool = False  # a package that is there may be replaced


def export_package(
    module: nn.Module,
    example: Tensor,
    folder: str | os.PathLike[str],
    *,
    card: Card | None = None,
    check_inputs: Tensor | None = None,
    score: Score | None = None,
    settings: PackageSettings | None = None,
) -> Manifest:
    """Write a model as a package, after every exit was compared with torch, counted and timed on ONNX Runtime.

    The folder appears whole and checked or not at all; the module is untouched.

    Args:
        example: an image (1, channels, height, width); its values do not matter.
        card: class names and normalisation, for the manifest.
        check_inputs: real images as the module takes them, 64 or more, on which the exits are compared with torch;
            random ones where left out.
        score: gives the top-1 of something that maps images to scores, for the manifest.

    Raises:
        UsageError: the folder holds something, or no such opset.
        ModelError: the model does not run on the example, takes several inputs, or torch cannot export it.
        CompressorError: an exit computes something else than torch, or more or less than it promises.
        FileError: the folder cannot be written.

    Example:
        manifest = export_package(module, torch.zeros(1, 3, 32, 32), "deploy", card=Card(classes=("cat", "dog")))
        manifest.exits[0].latency_ms["median"]      # 0.84
    """
    settings, card, target = settings or PackageSettings(), card or Card(), Path(folder)
    check_opset(settings.opset)
    outdated = check_target(target, overwrite=settings.overwrite)
    form = form_of(reference_of(module), portable(example))
    inputs = random_like(portable(example), PROOF_IMAGES) if check_inputs is None else portable(check_inputs)
    with folder_beside(target) as staging:
        _write_model(form, inputs, staging, settings)
        exits = _prove(form, inputs, staging, score, settings)
        manifest = Manifest(
            kind=form.kind,
            input=input_facts(tuple(inputs.shape[1:]), card),
            outputs=output_names(staging / MODEL),
            exits=exits,
            classes=card.classes,
            choice=form.choice,
            opset=settings.opset,
            checked_on=f"{len(inputs)} {'random' if check_inputs is None else 'real'} images",
            made_with={name: version(name) for name in ("compressor", "torch", "onnx", "onnxruntime")},
            history=card.history,
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

    (staging / RUNNER).write_text(Path(__file__).with_name(RUNNER).read_text(encoding="utf-8"), encoding="utf-8")
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
    return verify_package(staging)


def output_names(file: Path) -> tuple[str, ...]:
    """Names of a graph's outputs."""
    return tuple(entry.name for entry in open_session(file, level="off").get_outputs())


def _write_model(form: Form, inputs: Tensor, staging: Path, settings: PackageSettings) -> None:
    import onnx

    with WeightsFile(staging / WEIGHTS) as weights, tempfile.TemporaryDirectory(dir=staging) as scratch:
        maker = StageMaker(weights, Path(scratch), settings.opset)
        graphs = build(form, inputs, maker, separate=settings.separate)
    for name, model in graphs.items():
        onnx.save(model, staging / name)
        check_file(staging / name)


def _prove(
    form: Form, inputs: Tensor, staging: Path, score: Score | None, settings: PackageSettings
) -> tuple[ExitFacts, ...]:
    """Compare, count and time every exit; the flat graphs too are compared and counted."""
    file, image, threads = staging / MODEL, inputs[:1].numpy(), torch.get_num_threads()
    session = open_session(file, threads=threads)
    costs = [cost_of(leaving, inputs) for leaving in form.exits]
    runners = [Runner(session, leaving.feeds) for leaving in form.exits]
    found = []
    for leaving, cost, run in zip(form.exits, costs, runners):
        found.append(parity(run, leaving, inputs))
        count_convolutions(file, leaving, cost, image)
        if settings.separate:
            flat, alone = staging / flat_name(leaving.number), replace(leaving, feeds={})
            found[-1] = max(found[-1], parity(Runner(open_session(flat), {}), alone, inputs))
            count_convolutions(flat, alone, cost, image)
    times = latencies(runners, costs, image, threads) if settings.latency else [None] * len(costs)
    return tuple(
        ExitFacts(
            number=leaving.number,
            name=leaving.name,
            macs=cost.macs,
            params=cost.params,
            convolutions=cost.convolutions,
            feeds={name: value.tolist() for name, value in leaving.feeds.items()},
            file=flat_name(leaving.number) if settings.separate else None,
            top1=None if score is None else score(partial(_scores, run)),
            latency_ms=None if time is None else asdict(time),
            max_rel=relative,
        )
        for leaving, cost, run, relative, time in zip(form.exits, costs, runners, found, times)
    )


def _scores(run: Runner, batch: Array) -> Array:
    return run(batch)[0]
