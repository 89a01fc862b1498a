"""Write a model for another runtime, checked: `compressor export`."""

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import UsageError
from compressor.exporting.flatten import OPSET, check_opset
from compressor.exporting.forms import form_of
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.onnx import export_onnx
from compressor.exporting.package import check_target, export_package
from compressor.exporting.proof import PROOF_IMAGES, Evidence
from compressor.exporting.runtimes import RUNTIMES, check_runtime
from compressor.exporting.to_torch import export_program
from compressor.files.paths import check_writable
from compressor.report.manifest import ENGINES, MANIFEST, PREPARATION, RUNNER, SAMPLE, WATCH, WEIGHTS, Manifest, chosen
from compressor.report.measurements import TOP1, Certificate
from compressor.runs.job import ExportJob
from compressor.runs.promise import Promise, put_aside
from compressor.runs.settings import PromiseSettings
from compressor.runs.stages import Callback, Stage, note_all, silent
from compressor.runs.subject import Subject, card_of, open_subject
from compressor.training.evaluate import evaluate
from compressor.training.task import Task

_CALIBRATION_IMAGES = 128  # of the training set, for int8


@dataclass(frozen=True)
class Exported:
    """What was written: each file with a few words, and all that was found out about it."""

    files: dict[str, str]
    facts: dict[str, Any]
    manifest: Manifest | None = None
    model: str = ""  # the file to profile next
    notes: tuple[str, ...] = field(default=())


def export(job: ExportJob, tell: Callback = silent) -> Exported:
    """Write one .onnx file, or a package where `out` is a folder, after comparing ONNX Runtime with torch.

    Raises:
        CompressorError: the model cannot be opened or exported, or the export computes something else, or exists.
    """
    path = Path(job.out).expanduser()
    single = job.to == "pt2" or path.suffix == ".onnx"
    _check(job, path, single)
    tell(Stage("opening the model"))
    subject = open_subject(job.model, job.data, job.loading, "cpu")
    note_all(subject.notes, tell)
    module = _chosen(subject, job, single)
    if job.to == "pt2":
        tell(Stage("writing the program and opening it again"))
        return _program(subject, module, path)
    title = RUNTIMES[job.to].title
    tell(Stage(f"exporting to {title} and comparing it with torch"))
    opset = OPSET if job.opset is None else job.opset
    if single:
        return _file(subject, module, path, opset)
    settings = PackageSettings(
        opset=opset,
        separate=job.exits == "separate",
        latency=job.latency,
        overwrite=job.overwrite,
        runtime=job.to,
        int8=job.chip if job.precision == "int8" else None,
        sign=job.sign,
    )
    promise = None
    if job.promise.max_drop is not None and subject.data is not None:
        data, aside = put_aside(subject.data, job.loading.seed)
        subject = replace(subject, data=data)
        promise = partial(_promised, job.promise, aside, data)
    evidence = replace(evidence_of(subject, int8=job.precision == "int8"), promise=promise)
    manifest = export_package(
        module, subject.example, path, card=card_of(subject), evidence=evidence, settings=settings
    )
    return _package(path, manifest)


def evidence_of(subject: Subject, *, int8: bool) -> Evidence:
    """What the data give to judge an export by; nothing without data."""
    data = subject.data
    if data is None:
        return Evidence()
    calibration = data.examples(data.train, _CALIBRATION_IMAGES) if int8 else None
    return Evidence(
        data.examples(data.validation, PROOF_IMAGES), calibration, partial(_main, data), lambda: data.figure
    )


def _check(job: ExportJob, path: Path, single: bool) -> None:
    """Raise UsageError, or FileError, before anything is opened."""
    if single and path.exists() and not path.is_dir() and not job.overwrite:
        raise UsageError(f"{path} exists: give another `out`, or `overwrite` to replace it")
    if job.to == "pt2" and path.suffix != ".pt2":
        raise UsageError(f"`to` pt2 writes one file: give `out` a name that ends in .pt2, not {path.name!r}")
    if path.suffix == ".pt2" and not single:
        raise UsageError(f"{path.name!r} is what `to` pt2 writes: give that, or `out` the name of a folder")
    if single and job.exits == "separate":
        raise UsageError("`exits` separate writes several files: give `out` the name of a folder")
    if path.suffix == ".onnx" and job.to != "onnx":
        raise UsageError(f"`to` {job.to} writes a folder: give `out` the name of one, not {path.name!r}")
    if job.to != "pt2":
        check_runtime(job.to, int8=job.precision == "int8")
    if job.precision == "int8" and (single or job.data is None):
        raise UsageError("`precision` int8 writes a package and calibrates on data: give `out` FOLDER and `data`")
    if job.promise.max_drop is not None and job.precision != "int8":
        raise UsageError("`max_drop` is what `precision` int8 may cost: leave it out")
    if job.sign is not None and single:
        raise UsageError("`sign` signs a package: give `out` the name of a folder")
    if job.opset is not None:
        check_opset(job.opset)
    if not single:
        check_target(path, overwrite=job.overwrite)
    check_writable(path.parent if single else path)


def _chosen(subject: Subject, job: ExportJob, single: bool) -> nn.Module:
    """The whole model, or the one exit that was asked for."""
    exits = form_of(subject.module, subject.example).exits
    if job.exit is not None:
        return chosen(exits, job.exit).module
    if len(exits) > 1 and single:
        instead = "`to` onnx and a folder, which takes all of them" if job.to == "pt2" else "`out` the name of a folder"
        kind = "a program of torch's" if job.to == "pt2" else "one file"
        names = ", ".join(f"{each.number} ({each.name})" for each in exits)
        raise UsageError(f"{kind} holds one exit, and the model has {names}: choose with `exit`, or give {instead}")
    return subject.module


def _file(subject: Subject, module: nn.Module, path: Path, opset: int) -> Exported:
    check = export_onnx(
        module, subject.example, path, opset=opset, check_inputs=subject.real_images, card=card_of(subject)
    )
    words = f"{check.file_bytes:,} bytes; on {check.inputs} images its outputs differ by {check.max_rel:.0e}"
    return Exported({str(path): words}, {"file": str(path), **asdict(check)}, model=str(path))


def _program(subject: Subject, module: nn.Module, path: Path) -> Exported:
    settings = {"measurements": subject.opened.measurements}
    images = subject.real_images
    check = export_program(module, subject.example, path, card=card_of(subject), settings=settings, check_inputs=images)
    words = f"{check.file_bytes:,} bytes; opened again its outputs differ by {check.max_rel:.0e}"
    return Exported({str(path): words}, {"file": str(path), **asdict(check)}, model=str(path))


def _package(folder: Path, manifest: Manifest) -> Exported:
    worst = max(each.max_rel or 0.0 for each in manifest.exits)
    does = "classifies an image" if manifest.figure == TOP1 else "runs the network on what it takes"
    checked = f"on {manifest.checked_on} its outputs differ from torch's by {worst:.0e}"
    words = {
        WEIGHTS: "the weights, each once",
        MANIFEST: "inputs, classes, exits with cost and accuracy, hashes",
        RUNNER: f"{does} with numpy, {manifest.title} and pillow alone",
        PREPARATION: "brings an image to what the network takes, for run.py",
        ENGINES: f"opens a graph on {manifest.title}, for run.py",
        WATCH: "counts exits and watches the certificate, for run.py",
        SAMPLE: "an image of noise and each exit's output, which `verify` compares",
        **{file: name.replace("_", " ") for name, file in manifest.graphs.items()},
    }
    graph = manifest.graphs.get("model", "")
    words[graph] = "the graph in INT8" if manifest.quantization else f"the graph; {checked}"
    files = {
        str(folder / name): words.get(name, "its weights")
        for name in (*sorted(manifest.files, key=lambda name: (name != graph, name)), MANIFEST)
    }
    return Exported(files, {"folder": str(folder), **manifest.to_json()}, manifest, str(folder / graph))


def _promised(asked: PromiseSettings, aside: Any, data: Task, before: Any, after: Any) -> Certificate:
    return Promise.of(asked, aside, before, data).kept([after], data)[1]


def _main(data: Task, predict: Any) -> float:
    return evaluate(predict, data.test, data).main
