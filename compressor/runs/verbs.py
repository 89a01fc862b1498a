"""The verbs of the command line as functions: what is a flag there is a keyword here, under the same name.

A verb takes the keywords that one types in a notebook, and whole objects of settings for the rest:
`compressor.prune("m.pt", AdapNetSettings(lsep=50), data="digits", out="runs/m")`. An object takes the place of what the
verb would begin with, and says the method or the mode where it has one; keywords change single settings. Every verb
that changes a model leaves a run's folder, as the command does, and returns its report. `tell` hears what the run is
doing.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, Unpack

from compressor.graph.neutral import afresh
from compressor.pruning.adapnet.settings import Preset
from compressor.report.report import Report
from compressor.report.run_comparison import RunComparison
from compressor.runs.asked import Common, Settings, asked
from compressor.runs.evaluate import Evaluated
from compressor.runs.evaluate import evaluate as _evaluate
from compressor.runs.export import Exported
from compressor.runs.export import export as _export
from compressor.runs.inspect import Inspected
from compressor.runs.inspect import inspect as _inspect
from compressor.runs.job import EvaluateJob, ExportJob, InspectJob
from compressor.runs.run import run
from compressor.runs.settings import ModelSettings
from compressor.runs.shrink import shrink as _shrink
from compressor.runs.stages import Callback, silent
from compressor.runs.sweep import sweep as _sweep
from compressor.training.settings import DataSettings

Path = str | os.PathLike[str]


@afresh()
def train(
    *settings: Settings, data: str | None = None, out: Path, tell: Callback = silent, **keywords: Unpack[Common]
) -> Report:
    """Train an architecture from random weights.

    Args:
        data: digits (built in), folder:DIR or another data set, as `compressor train --help` lists them.
            In place of `data` any verb takes `task`: an object with `data`, `loss`, `measure` and `inputs`, or
            "FILE.py:CLASS", see `compressor new-task`.
        out: folder of the run.
        keywords: `arch` (torchvision:NAME, timm:NAME or FILE.py:FUNCTION) and others, see `Common`.

    Raises:
        UsageError: a keyword is unknown, of another type, or makes no sense.
        CompressorError: anything else that the caller can mend.

    Example:
        report = compressor.train(arch="sample_models/digits_cnn.py:build", data="digits", epochs=2, out="runs/digits")
        report.after.top1
    """
    return run(*asked("train", locals()))


@afresh()
def finetune(
    model: Path,
    *settings: Settings,
    data: str | None = None,
    out: Path,
    distill: bool | None = None,
    tell: Callback = silent,
    **keywords: Unpack[Common],
) -> Report:
    """Train a model further, gently: at a learning rate of 0.01 unless `lr` says otherwise.

    Example:
        report = compressor.finetune("runs/digits/model.safetensors", data="digits", epochs=1, out="runs/tuned")
        report.before.top1, report.after.top1
    """
    return run(*asked("finetune", locals()))


@afresh()
def prune(
    model: Path | None = None,
    *settings: Settings,
    out: Path,
    data: str | None = None,
    method: str | None = None,
    ratio: float | None = None,
    target_macs: float | None = None,
    target_ms: float | None = None,
    keep: Sequence[str] | None = None,
    preset: Preset | None = None,
    distill: bool | None = None,
    tell: Callback = silent,
    **keywords: Unpack[Common],
) -> Report:
    """Make a model smaller: in one shot, with data also fine-tuned, or by AdapNet while it trains (method="adapnet").

    `compressor.prune_` does the one-shot part in place on an nn.Module in memory.

    Args:
        model: a file; None: `arch` with random weights.
        ratio: share of the channels that go.
        target_macs: in place of a ratio, the multiply-adds that stay: up to 1 as a share, above as a number.
        target_ms: in place of a ratio, milliseconds for one image in ONNX Runtime on this machine.
        preset: of AdapNet.

    Raises:
        UsageError: a keyword is unknown, of another type, or not the method's.
        CompressorError: anything else that the caller can mend.

    Example:
        report = compressor.prune(
            "runs/digits/model.safetensors", target_macs=0.5, data="digits", epochs=1, out="runs/small"
        )
        report.after.macs / report.before.macs
    """
    return run(*asked("prune", locals()))


@afresh()
def detach(
    model: Path | None = None,
    *settings: Settings,
    data: str | None = None,
    out: Path,
    method: Literal["cnsn", "nsn"] | None = None,
    exits: int | None = None,
    at: Sequence[str] | None = None,
    targets: Sequence[float] | None = None,
    tell: Callback = silent,
    **keywords: Unpack[Common],
) -> Report:
    """Make one network of several sizes, whose sub-models share its weights.

    Example:
        report = compressor.detach(
            "runs/digits/model.safetensors", exits=1, data="digits", epochs=1, out="runs/detached"
        )
        report.variants["exit 1"].macs, report.variants["exit 1"].top1
    """
    return run(*asked("detach", locals()))


@afresh()
def route(
    model: Path | None = None,
    *settings: Settings,
    data: str | None = None,
    out: Path,
    mode: Literal["tuned", "paper"] | None = None,
    target_macs: float | None = None,
    target_ms: float | None = None,
    max_drop: float | None = None,
    router_epochs: int | None = None,
    tell: Callback = silent,
    **keywords: Unpack[Common],
) -> Report:
    """Let each image run only the layers it needs.

    Example:
        report = compressor.route(
            "runs/digits/model.safetensors", data="digits", epochs=1, router_epochs=2, out="runs/routed"
        )
        report.after.macs      # the mean over the test images
    """
    return run(*asked("route", locals()))


@afresh()
def replace_early(
    model: Path | None = None,
    *settings: Settings,
    data: str | None = None,
    out: Path,
    until: str | None = None,
    fit: Literal["pool", "stride"] | None = None,
    retrain_epochs: int | None = None,
    tell: Callback = silent,
    **keywords: Unpack[Common],
) -> Report:
    """Replace the first layers by PrimeNet's block, which learns by local losses: `compressor replace`.

    Example:
        report = compressor.replace_early(
            "runs/digits/model.safetensors", until="5", fit="stride", data="digits", epochs=1, out="runs/prime"
        )
        report.after.macs
    """
    return run(*asked("replace", locals()))


@afresh()
def sweep(
    model: Path,
    *settings: Settings,
    data: str | None = None,
    out: Path,
    methods: Sequence[str] | None = None,
    targets: Sequence[float] | None = None,
    tell: Callback = silent,
    **keywords: Unpack[Common],
) -> RunComparison:
    """Prune by several methods to several targets with one budget, and compare; called again, it does what is missing.

    Args:
        targets: shares of the model's multiply-adds to keep.

    Example:
        compared = compressor.sweep(
            "runs/digits/model.safetensors", methods=["l1"], targets=[0.5], data="digits", epochs=1, out="runs/sweep"
        )
        [(point.run, point.macs, point.top1) for point in compared.points]
    """
    return _sweep(*asked("sweep", locals()))


@afresh()
def shrink(
    model: Path,
    *settings: Settings,
    data: str,
    out: Path,
    max_drop: float | None = None,
    target_ms: float | None = None,
    tell: Callback = silent,
    **keywords: Unpack[Common],
) -> RunComparison:
    """The cheapest network that loses at most `max_drop` of top-1 on fresh images, found in `for_` seconds.

    Example:
        compared = compressor.shrink("runs/digits/model.safetensors", data="digits", max_drop=0.05, out="runs/shrunk")
        compared.promised, compared.certificate.words()
    """
    return _shrink(*asked("shrink", locals()))


@afresh()
def evaluate(
    model: Path,
    *settings: ModelSettings | DataSettings,
    data: str | None = None,
    split: Literal["test", "validation", "train"] = EvaluateJob.split,
    exit: int | None = None,
    device: str = EvaluateJob.device,
    tell: Callback = silent,
    **keywords: Any,
) -> Evaluated:
    """Top-1 and loss of a model, or of an .onnx file.

    Example:
        compressor.evaluate("runs/digits/model.safetensors", data="digits").top1
    """
    return _evaluate(*asked("evaluate", locals()))


@afresh()
def inspect(
    model: Path | None = None,
    *settings: ModelSettings,
    arch: str | None = None,
    keep: Sequence[str] = InspectJob.keep,
    also: Sequence[str] = InspectJob.also,
    tell: Callback = silent,
    **keywords: Any,
) -> Inspected:
    """Which channels of a model belong together, which can be edited, and why others cannot.

    With `sensitivity=True` and `data`, how far the outputs move when shares of each group go: `outputs_moved`.

    Example:
        channels = compressor.inspect("runs/digits/model.safetensors")
        channels.frozen                      # {group: reason}
    """
    return _inspect(*asked("inspect", locals()))


@afresh()
def export(
    model: Path,
    out: Path,
    *settings: ModelSettings | DataSettings,
    to: Literal["onnx", "openvino", "litert", "executorch", "ncnn", "torch", "pt2"] = ExportJob.to,
    precision: Literal["fp32", "int8"] = ExportJob.precision,
    data: str | None = None,
    exit: int | None = None,
    exits: Literal["one", "separate"] = ExportJob.exits,
    chip: Literal["x86", "x86-old", "arm", "npu"] = ExportJob.chip,
    max_drop: float | None = None,
    overwrite: bool = False,
    tell: Callback = silent,
    **keywords: Any,
) -> Exported:
    """Write a model for another runtime, after it gave the same outputs there: a file (NAME.onnx) or a package.

    Args:
        to: the runtime; "torch", a Python file with weights; "pt2", torch's program.

    Example:
        made = compressor.export("runs/digits/model.safetensors", "runs/digits.onnx", data="digits")
        made.files                           # {path: what it is}
    """
    return _export(*asked("export", locals()))
