"""A package: one folder with everything a device needs to run a model, written only after its proof.

model.onnx      the graph, some kilobytes; of another runtime its own files
weights.bin     every weight once
manifest.json   inputs, classes, exits with cost and accuracy, hash of every file; also inside model.onnx
sample.npz      an image of noise and what each exit gives for it
run.py          classifies an image with numpy, the runtime and pillow alone, and checks the package
preparation.py  brings an image to what the network takes, for run.py
engines.py      opens a graph on its runtime, for run.py
watch.py        counts exits and says when the certificate no longer holds, for run.py
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.certify import share_at_most
from compressor.errors import FileError, ModelError, UsageError
from compressor.exporting import engines, run, watch
from compressor.exporting.engines import Run
from compressor.exporting.flatten import check_opset
from compressor.exporting.forms import Form, form_of
from compressor.exporting.graphs import PackageSettings, write_graphs
from compressor.exporting.proof import Demands, Evidence, prove, routing_facts
from compressor.exporting.quantize import facts
from compressor.exporting.running import arrays, opened
from compressor.exporting.runtime import noise, open_session
from compressor.exporting.runtimes import Runtime, check_runtime
from compressor.exporting.samples import (
    arranged,
    images,
    input_names,
    portable,
    random_like,
    reference_of,
    torch_answer,
)
from compressor.exporting.verify import SIGNATURE, check_package, private_key
from compressor.files.paths import folder_beside, move_folder
from compressor.report.card import Card, input_facts
from compressor.report.environment import VERSION
from compressor.report.manifest import (
    ENGINES,
    MANIFEST,
    METADATA_KEY,
    PREPARATION,
    RUNNER,
    SAMPLE,
    WATCH,
    WEIGHTS,
    ExitFacts,
    Manifest,
    file_facts,
    read_manifest,
)
from compressor.training.task import examples_in
from compressor.vision import preparation


def export_package(
    module: nn.Module,
    example: Any,
    folder: str | os.PathLike[str],
    *,
    card: Card | None = None,
    evidence: Evidence | None = None,
    settings: PackageSettings | None = None,
) -> Manifest:
    """Write a model as a package, after every exit was compared with torch, counted and timed on ONNX Runtime.

    The folder appears whole and checked or not at all; the module is untouched.

    Args:
        example: an image (1, channels, height, width), or a tuple or dict of inputs for ONNX Runtime; its values do not
            matter.
        card: class names and normalisation, for the manifest.
        evidence: real images to compare on, others to calibrate a quantizer on, and what measures top-1; without it
            the comparison is on random images, and there is no quantization.

    Raises:
        UsageError: the folder holds something, no such opset, nothing to calibrate on, or a runtime is not installed.
        ModelError: the model does not run on the example, takes several inputs where the runtime is another, or torch
            cannot export it.
        CompressorError: an exit computes something else than torch, or more or less than it promises, or loses more
            accuracy by quantization than it may.
        FileError: the folder cannot be written.

    Example:
        manifest = export_package(module, torch.zeros(1, 3, 32, 32), "deploy", card=Card(classes=("cat", "dog")))
        manifest.exits[0].latency_ms["median"]      # 0.84
    """
    card, settings, target = card or Card(), settings or PackageSettings(), Path(folder)
    check_opset(settings.opset)
    runtime = check_runtime(settings.runtime, int8=settings.int8 is not None)
    key = None if settings.sign is None else private_key(settings.sign)
    outdated = check_target(target, overwrite=settings.overwrite)
    if not isinstance(example, Tensor) and runtime.name != "onnx":
        raise ModelError(f"packages for {runtime.title} take one tensor of images: export this model with `to` onnx")
    evidence = (evidence or Evidence()).on(portable(example))
    form = _called(form_of(reference_of(module), portable(example)), evidence.images)
    if settings.int8 is not None and (evidence.calibration is None or evidence.score is None):
        raise UsageError("quantization needs images to calibrate on and to measure the accuracy on: give `data`")
    with folder_beside(target) as staging, tempfile.TemporaryDirectory() as before:
        graphs = write_graphs(form, evidence, staging, settings, runtime)
        demands = Demands(runtime.name, settings.latency, settings.int8 is not None)
        if demands.quantized and demands.latency:
            whole = write_graphs(form, evidence, Path(before), replace(settings, int8=None), runtime)
            network = opened(Path(before), whole, runtime.name, form, torch.get_num_threads())
            demands = replace(demands, float32=network)
        exits = prove(form, evidence, staging, graphs, demands)
        made = _manifest(form, evidence, staging, graphs, exits, card, settings, runtime)
        if made.quantization is not None and demands.float32 is not None:
            taken = sum(file.stat().st_size for file in Path(before).iterdir())
            made = replace(made, quantization={**made.quantization, "float32_bytes": taken})
        manifest = finish(staging, made)
        if key is not None:
            (staging / SIGNATURE).write_bytes(key.sign((staging / MANIFEST).read_bytes()))
        move_folder(staging, target, last=MANIFEST, outdated=outdated)
    return manifest


def _called(form: Form, inputs: Any) -> Form:
    """The form with the names of what a compact network is called with, and how it returns its outputs."""
    if form.kind != "compact":
        return form
    gives = arranged(torch_answer(form.module, images(inputs, 2)))
    return replace(form, names=input_names(form.module, inputs), gives=gives)


def _manifest(
    form: Form,
    evidence: Evidence,
    staging: Path,
    graphs: dict[str, str],
    exits: tuple[ExitFacts, ...],
    card: Card,
    settings: PackageSettings,
    runtime: Runtime,
) -> Manifest:
    """What the package says of itself, its sample written; without the hashes of its files."""
    assert evidence.images is not None
    network = opened(staging, graphs, runtime.name, form, 0)
    routing = routing_facts(form, evidence.score, network, exits)
    quantization, certificate = None, card.certificate
    if settings.int8 is not None and evidence.calibration is not None:
        quantization = facts(settings.int8, examples_in(evidence.calibration), runtime.quantizer)
        certificate = None  # it is another network; what is promised of that stands beside each exit
    given = arrays(evidence.images, form.names)
    first, *further = [(name, tuple(each.shape[1:]), str(each.dtype)) for name, each in given.items()]
    return Manifest(
        kind=form.kind,
        input=input_facts(first[1], card, first[0], first[2]),
        further=tuple({"name": name, "shape": shape, "dtype": dtype} for name, shape, dtype in further),
        gives=form.gives,
        outputs=_outputs(form, staging, graphs),
        exits=exits,
        title=runtime.title,
        runtime=runtime.name,
        graphs=graphs,
        sample=_write_sample(staging, form, evidence.images, network, quantized=quantization is not None),
        classes=card.classes,
        choice=form.choice,
        routing=routing,
        opset=settings.opset,
        checked_on=evidence.words,
        figure=evidence.figure().name,
        certificate=certificate,
        watch=watch_facts(form, exits, routing, certificate),
        quantization=quantization,
        made_with={"compressor": VERSION} | {name: version(name) for name in ("torch", *runtime.made_with)},
        history=card.history,
    )


def check_target(target: Path, *, overwrite: bool) -> tuple[str, ...]:
    """The files of an earlier package that go when a new one comes in its place.

    Raises:
        UsageError: the place is taken, by a file, by something else than a package, or without leave to replace it.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file: give `out` the name of a folder, or of a .onnx file")
    if not target.exists() or not any(target.iterdir()):
        return ()
    if not overwrite:
        raise UsageError(f"{target} is not empty: give another `out`, or `overwrite` to replace the package in it")
    try:
        return (*(name for name in read_manifest(target).files if name == Path(name).name), SIGNATURE)
    except FileError as error:
        raise UsageError(f"{target} holds something else than a package: give another `out`") from error


def finish(staging: Path, manifest: Manifest) -> Manifest:
    """Put the manifest into the graphs and beside them, with the script; then check the folder as a user would."""
    import onnx

    write_runner(staging)
    weights = {name: file_facts(staging / name) for name in (WEIGHTS,) if (staging / name).exists()}
    inside = replace(manifest, files=weights).text()
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
    """The script, and the code beside it that it imports."""
    sources = {RUNNER: run, PREPARATION: preparation, WATCH: watch, ENGINES: engines}
    for name, source in sources.items():
        code = Path(str(source.__file__)).read_text(encoding="utf-8")
        for room in ("compressor.vision", "compressor.exporting"):
            code = code.replace(f"from {room}.", "from ")
        (folder / name).write_text(code, encoding="utf-8")


def watch_facts(
    form: Form, exits: Sequence[ExitFacts], routing: Mapping[str, Any] | None, certificate: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What `watch.Watched` needs to know of a certificate; None where there is none that a device can watch.

    Half of the risk that the certificate leaves is the bound's on the images it was made on, half the watch's.
    """
    if certificate is None or not certificate["kept"] or certificate["differed"] is None:
        return None
    number, images, differed = certificate["exit"], certificate["images"], certificate["differed"]
    if differed == images:
        return None
    assert form.choice is not None
    feeds = {form.choice["input"]: form.choice["default"]} if number is None else exits[number].feeds
    deepest = exits[-1] if form.kind == "routed" else exits[0]
    spent = exits[number].macs if number is not None else exits[0].macs if routing is None else routing["mean_macs"]
    level = (1 + certificate["confidence"]) / 2
    return {
        "feeds": feeds,
        "deepest": deepest.feeds,
        "share": watch.OVERHEAD * spent / deepest.macs,
        "images": images,
        "differed": differed,
        "limit": share_at_most(differed, images, level),
        "level": level,
        "confidence": certificate["confidence"],
    }


def _outputs(form: Form, staging: Path, graphs: dict[str, str]) -> tuple[str, ...]:
    graph = graphs.get("model", "")
    if graph.endswith(".onnx"):
        return tuple(entry.name for entry in open_session(staging / graph, level="off").get_outputs())
    return ("logits", "exit") if form.kind == "routed" else ("logits",)


def _write_sample(folder: Path, form: Form, inputs: Any, network: Run, *, quantized: bool) -> dict[str, Any]:
    """Store an image of noise and what each exit gives for it; of several inputs noise for each of floats."""
    like = random_like(images(inputs, 1), 1)
    given = {"input": noise((1, *form.shape))} if isinstance(inputs, Tensor) else arrays(like, form.names)
    outputs = {f"exit_{each.number}": network({**given, **each.feeds})[0] for each in form.exits}
    np.savez(folder / SAMPLE, allow_pickle=False, **given, **outputs)
    return {"file": SAMPLE, "limit": 0.3 if quantized else 1e-3}
