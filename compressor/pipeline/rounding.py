"""What rounding widths to the chip's liking costs in multiply-adds and gains in time: `--round-to auto`."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compressor.exporting.chip import preferred_multiple
from compressor.exporting.onnx import export_onnx
from compressor.exporting.runtime import OnnxModel
from compressor.graph.channels import Channels
from compressor.graph.skeleton import skeleton
from compressor.methods.oneshot import Ranked
from compressor.methods.selection import select
from compressor.methods.settings import PruneSettings
from compressor.profiling.latency import measure
from compressor.reporting import units
from compressor.reporting.sections import Section, Table
from compressor.surgery import Plan, operate_

_ROUNDS = 3  # both are measured in turn, so that what else the machine does meets both


@dataclass(frozen=True)
class Width:
    """One way to prune the network."""

    multiple: int
    macs: int
    params: int
    latency_ms: float  # ONNX Runtime, batch 1


@dataclass(frozen=True)
class Rounding:
    """The same pruning with widths as they come, and with widths rounded."""

    why: str
    plain: Width
    rounded: Width

    @property
    def words(self) -> str:
        """One line for the user."""
        more = self.rounded.macs / self.plain.macs - 1
        faster = self.plain.latency_ms / self.rounded.latency_ms
        return (
            f"widths are multiples of {self.rounded.multiple} ({self.why}): {more:+.1%} multiply-adds and "
            f"{faster:.2f} times as fast as with widths as they come ({units.milliseconds(self.plain.latency_ms)} to "
            f"{units.milliseconds(self.rounded.latency_ms)})"
        )

    def section(self) -> Section:
        """A part of the report."""
        rows = tuple(
            (str(each.multiple), units.macs(each.macs), units.amount(each.params), units.milliseconds(each.latency_ms))
            for each in (self.plain, self.rounded)
        )
        table = Table(("multiples of", "MACs", "parameters", "latency ONNX Runtime"), rows, self.why)
        return Section("Rounding", self.words, tables=(table,))


def chosen_multiple(settings: PruneSettings) -> PruneSettings:
    """The settings with the multiple that suits this machine where they say auto."""
    return replace(settings, round_to=preferred_multiple()[0]) if settings.round_to == "auto" else settings


def weigh_rounding(
    module: nn.Module,
    example: Tensor,
    channels: Channels,
    settings: PruneSettings,
    ranked: Ranked,
) -> Rounding:
    """Prune two copies, with `settings.round_to` and without, and measure both on ONNX Runtime; the module stays.

    Raises:
        CompressorError: one of them cannot be pruned as asked, or not be exported.

    Example:
        settings = PruneSettings(method="l1", ratio=0.3, allocate="uniform", round_to="auto")
        weigh_rounding(module, example, channels, settings, rank(module, channels, settings)).words
    """
    settings = chosen_multiple(settings)
    both = [replace(settings, round_to=1), settings]
    selections = [select(channels, ranked.scores, each, ranked.places) for each in both]
    times = _latencies([_pruned(module, each.plan, channels) for each in selections], example)
    plain, rounded = (Width(found.round_to, found.macs, found.params, time) for found, time in zip(selections, times))
    return Rounding(preferred_multiple()[1], plain, rounded)


def _pruned(module: nn.Module, plan: Plan, channels: Channels) -> nn.Module:
    copied = skeleton(module, real=True)
    operate_(copied, plan, channels)
    return copied


def _latencies(modules: Sequence[nn.Module], example: Tensor) -> list[float]:
    """Milliseconds for one image, the best of several medians taken in turn."""
    image = example[:1].detach().cpu().numpy().astype(np.float32)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for number, module in enumerate(modules):
            path = Path(folder) / f"{number}.onnx"
            export_onnx(module, example, path)
            models.append(OnnxModel(path, threads=threads, own=True))
        found = [[_time(model, image, threads) for model in models] for _ in range(_ROUNDS)]
    return [min(times) for times in zip(*found)]


def _time(model: OnnxModel, image: np.ndarray, threads: int) -> float:
    return measure(lambda: model(image), threads=threads, seconds=0.3).median
