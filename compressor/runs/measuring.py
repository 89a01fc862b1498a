"""Measure a model before and after: cost, size on disk, accuracy on the test set."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from compressor.errors import CompressorError
from compressor.exporting.latency import model_latencies, profile
from compressor.graph.channels import Channels
from compressor.graph.neutral import bare
from compressor.loading.opening import OpenedModel
from compressor.report import units
from compressor.report.measurements import LayerSize, Measurements
from compressor.runs.folder import MODEL
from compressor.runs.models import save_model
from compressor.runs.subject import Subject
from compressor.training import distributed
from compressor.training.evaluate import evaluate


def measure(subject: Subject) -> Measurements:
    """Cost, size of the checkpoint, and the figures on the test set where there are data.

    Of several processes the first measures, and all know.

    Raises:
        UsageError: the model could not be saved, for want of an architecture.
    """
    return distributed.from_first(lambda: _measured(subject))


def _measured(subject: Subject) -> Measurements:
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
