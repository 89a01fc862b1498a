"""Measure a model before and after, and write what a run leaves: the model, its checked ONNX file, report and page."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from compressor.errors import CompressorError
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.latency import model_latencies, profile
from compressor.exporting.onnx import export_onnx
from compressor.exporting.package import export_package
from compressor.graph.channels import Channels
from compressor.graph.neutral import bare
from compressor.loading.opening import OpenedModel
from compressor.report import units
from compressor.report.manifest import Manifest
from compressor.report.measurements import LayerSize, Measurements, OnnxCheck
from compressor.report.report import Report, write_page
from compressor.runs.export import evidence_of
from compressor.runs.folder import INT8, MODEL, ONNX, RunFolder
from compressor.runs.models import save_model
from compressor.runs.stages import Callback, Stage, note_all
from compressor.runs.subject import Subject, card_of, is_routed
from compressor.training import distributed
from compressor.training.evaluate import evaluate

_EXPORTS = {ONNX: "export to ONNX", INT8: "export to INT8"}


@distributed.by_first
def measure(subject: Subject) -> Measurements:
    """Cost, size of the checkpoint, and the figures on the test set where there are data.

    Of several processes the first measures, and all know.

    Raises:
        UsageError: the model could not be saved, for want of an architecture.
    """
    cost = profile(subject.module, subject.example, layers=False)
    reasons = {"latency_ms": "left out by --no-latency"}
    if subject.data is None:
        return Measurements.of(
            cost, file_bytes=file_bytes(subject.opened), reasons={"top1": "no --data was given", **reasons}
        )
    figures = evaluate(subject.module, subject.data.test, subject.data).figures
    found = Measurements.of(cost, file_bytes=file_bytes(subject.opened), reasons=reasons)
    return found.scored(subject.data.figure, figures, subject.data.amount(subject.data.test))


def timed(
    sides: Mapping[nn.Module, Measurements], example: Any, made: Path | CompressorError | None = None
) -> list[Measurements]:
    """What was measured of networks, with their latencies; `made`: the last one's ONNX file, or why it has none."""
    found = distributed.from_first(lambda: model_latencies([bare(module) for module in sides], example, made))
    return [side.timed(*each) for side, each in zip(sides.values(), found)]


def file_bytes(opened: OpenedModel) -> int:
    """How large the model is as a checkpoint of ours, which is how it is compared before and after."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        save_model(opened, path)
        return path.stat().st_size


def in_words(measured: Measurements) -> str:
    """The main figures in one line."""
    parts = [f"{units.macs(measured.macs or 0)}, {units.amount(measured.params or 0)} parameters"]
    if measured.main is not None:
        parts.append(f"test {measured.figure.label} {measured.figure.write(measured.main)}")
    return ", ".join(parts)


def filters(module: nn.Module) -> dict[str, int]:
    """Filters of every convolution, output features of every linear layer."""
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, _ConvNd):
            found[name or "(model)"] = layer.out_channels
        elif isinstance(layer, nn.Linear):
            found[name or "(model)"] = layer.out_features
    return found


def layer_sizes(before: dict[str, int], after: dict[str, int]) -> tuple[LayerSize, ...]:
    """Both, side by side."""
    return tuple(LayerSize(name, count, after.get(name, 0)) for name, count in before.items())


def filters_after(before: dict[str, int], channels: Channels, removed: tuple[int, ...]) -> dict[str, int]:
    """What `filters` will be once these channels are gone, without touching the model."""
    after = dict(before)
    for group in channels.free:
        for place in group.places:
            name = place.tensor.removesuffix(".weight")
            if place.role == "row" and name in after and len(channels.shapes[place.tensor]) > 1:
                ids = channels.identities[place.tensor, place.dim]
                after[name] = int(np.isin(ids, removed, invert=True).sum())
    return after


Exported = OnnxCheck | CompressorError | None  # None: not asked for


@distributed.by_first
def export_result(subject: Subject, folder: RunFolder, tell: Callback) -> OnnxCheck | CompressorError:
    """Write the checked ONNX file of a run's result; the check, or why there is no file."""
    tell(Stage("exporting to ONNX and comparing ONNX Runtime with torch"))
    try:
        return export_onnx(
            subject.module, subject.example, folder / ONNX, check_inputs=subject.real_images, card=card_of(subject)
        )
    except CompressorError as error:
        return error


def quantize(subject: Subject, report: Report, target: Path, tell: Callback) -> Manifest:
    """Write a run's network in INT8, a package, in the place of one that is there.

    Raises CompressorError.
    """
    tell(Stage("quantizing to INT8 and measuring it"))
    return export_package(
        subject.module,
        subject.example,
        target,
        card=card_of(subject),
        evidence=replace(evidence_of(subject, int8=True), scored=_scored(subject, report)),
        settings=PackageSettings(int8="x86", latency=False, overwrite=True),
    )


def _quantized(
    subject: Subject, report: Report, folder: RunFolder, tell: Callback
) -> list[dict[str, Any]] | CompressorError:
    """Write a run's result in INT8 as well, a package; how each exit does there, or why there is no package."""
    try:
        made = quantize(subject, report, folder / INT8, tell)
    except CompressorError as error:
        return error
    return [{"exit": each.name, "top1": each.top1, "top1_float": each.top1_float} for each in made.exits]


def _scored(subject: Subject, report: Report) -> dict[int, float]:
    """The figure of each exit, as the report has it; a routed network's exits are depths that nothing measured."""
    models = () if is_routed(subject.module) else (report.after, *report.variants.values())
    return {number: each.main for number, each in enumerate(models) if each.main is not None}


@distributed.by_first
def write_results(subject: Subject, report: Report, folder: RunFolder, exported: Exported, tell: Callback) -> Report:
    """Fill the folder, each file whole, the report last; returns the report with what exports found.

    Of several processes the first writes.

    Raises:
        CompressorError: the ONNX file or the package could not be made or computes something else; all other files are
            there then.
        FileError: the folder cannot be written.
    """
    tell(Stage(f"writing {folder.path}"))
    left_out = save_model(
        subject.opened,
        folder / MODEL,
        history=(report.command,),
        measurements=report.after.to_json(),
        overwrite=True,
    )
    note_all(left_out, tell)
    packed = _quantized(subject, report, folder, tell) if report.settings["precision"] == "int8" else None
    details = {**report.details, "int8": packed} if isinstance(packed, list) else report.details
    failed = {name: made for name, made in ((ONNX, exported), (INT8, packed)) if isinstance(made, CompressorError)}
    check = exported if isinstance(exported, OnnxCheck) else None
    refused = {_EXPORTS[name]: str(error) for name, error in failed.items()}
    settings = {**report.settings, "out": folder.named}
    notes = (*report.notes, *left_out)
    report = replace(
        report, settings=settings, export=check, refused={**report.refused, **refused}, notes=notes, details=details
    )
    folder.write_rows(report.rows)
    write_page(report, folder.path)
    report.save(folder.path)  # the last: a run with a report is finished
    folder.finish()
    for name, error in failed.items():
        instead = "leave it out with `onnx=False`" if name == ONNX else "leave out `precision` int8"
        raise CompressorError(f"{folder / MODEL} is made, but not {name}: {error}; {instead}") from error
    return report
