"""The verbs of the command line as functions: what is a flag there is a keyword here, under the same name.

A keyword that is not given has the verb's default, as a flag that is not typed does. Every verb that changes a model
leaves a run's folder, as the command does, and returns its report. `tell` hears what the run is doing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, get_type_hints

from compressor.errors import UsageError
from compressor.runs.keywords import (
    DetachKeywords,
    EvaluateKeywords,
    ExportKeywords,
    FinetuneKeywords,
    InspectKeywords,
    PruneKeywords,
    ReplaceKeywords,
    RouteKeywords,
    SweepKeywords,
    TrainKeywords,
)
from compressor.settings import check_fits, tuples, unknown
from compressor.pruning.adapnet.settings import PRESETS
from compressor.pruning.settings import PruneSettings
from compressor.runs.settings import (
    FINETUNE,
    AdaptJob,
    DetachJob,
    EvaluateJob,
    ExportJob,
    FinetuneJob,
    InspectJob,
    PruneJob,
    ReplaceJob,
    RouteJob,
    SweepJob,
    SweepSettings,
    TrainJob,
)
from compressor.runs.stages import Tell, silent
from compressor.primenet.settings import REPRESENTATION
from compressor.routing.settings import TUNED_TRAINING
from compressor.routing.settings import check as check_routing
from compressor.routing.settings import training_for as training_of_routing
from compressor.exits.settings import CNSN
from compressor.exits.settings import training_for as training_of_detaching

if TYPE_CHECKING:
    from compressor.graph.channels import Channels
    from compressor.runs.evaluate import Evaluated
    from compressor.runs.export import Exported
    from compressor.report.report import Report
    from compressor.report.run_comparison import RunComparison

Path = str | os.PathLike[str]
J = TypeVar("J")
P = ParamSpec("P")
R = TypeVar("R")
# AdapNet's training is its own; these are in the job and have no say.
_NOT_ADAPNETS = frozenset({"epochs", "schedule", "milestones", "gamma", "warmup_epochs", "compile"})


def _afresh(verb: Callable[P, R]) -> Callable[P, R]:
    """The verb as its command runs: in none of the caller's modes of torch; torch is imported at its first call."""

    @wraps(verb)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        from compressor.graph.neutral import afresh

        with afresh():
            return verb(*args, **kwargs)

    return inside


@_afresh
def train(*, data: str, out: Path, tell: Tell = silent, **settings: Unpack[TrainKeywords]) -> "Report":
    """Train an architecture from random weights.

    Args:
        data: digits, mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR, svhn:DIR or folder:DIR.
        out: folder of the run.
        settings: `arch` (torchvision:NAME, timm:NAME or FILE.py:FUNCTION) and the other fields of ModelSettings,
            OutputSettings, DataSettings and TrainSettings.

    Raises:
        UsageError: a keyword is unknown, of another type, or makes no sense.
        CompressorError: anything else that the caller can mend.

    Example:
        report = compressor.train(arch="sample_models/digits_cnn.py:build", data="digits", epochs=2, out="runs/digits")
        report.after.top1
    """
    from compressor.runs.train import train as run

    return run(_job(TrainJob, "train", {**settings, "data": data, "out": out}), tell)


@_afresh
def finetune(
    model: Path, *, data: str, out: Path, tell: Tell = silent, **settings: Unpack[FinetuneKeywords]
) -> "Report":
    """Train a model further, gently: at a learning rate of 0.01 unless `lr` says otherwise.

    Example:
        report = compressor.finetune("runs/digits/model.safetensors", data="digits", epochs=1, out="runs/tuned")
        report.before.top1, report.after.top1
    """
    from compressor.runs.train import train as run

    given = {**settings, "model": model, "data": data, "out": out}
    return run(_job(FinetuneJob, "finetune", given, training=FINETUNE), tell)


@_afresh
def prune(
    model: Path | None = None,
    *,
    out: Path,
    data: str | None = None,
    method: str = PruneSettings.method,
    tell: Tell = silent,
    **settings: Unpack[PruneKeywords],
) -> "Report":
    """Make a model smaller: in one shot, with data also fine-tuned, or by AdapNet while it trains (method="adapnet").

    `compressor.prune_` does the one-shot part in place on an nn.Module in memory.

    Args:
        model: a file; None: `arch` with random weights.
        settings: the fields of PruneSettings, or of AdapNetSettings and GoalSettings with `preset`, and those of
            ModelSettings, OutputSettings, DataSettings and TrainSettings.

    Raises:
        UsageError: a keyword is unknown, of another type, or not the method's.
        CompressorError: anything else that the caller can mend.

    Example:
        report = compressor.prune(
            "runs/digits/model.safetensors", target_macs=0.5, data="digits", epochs=1, out="runs/small"
        )
        report.after.macs / report.before.macs
    """
    given = {**settings, "model": model, "data": data, "out": out, "method": method}
    if method != "adapnet":
        from compressor.runs.prune import prune as run

        return run(_job(PruneJob, "prune", given, training=FINETUNE), tell)
    from compressor.runs.adapnet import adapt

    if data is None:
        raise UsageError("adapnet decides while the network trains and needs data")
    preset = str(given.get("preset", "paper"))
    if preset not in PRESETS:
        raise UsageError(f"preset is {preset!r}, and has to be one of {', '.join(PRESETS)}")
    job = _job(AdaptJob, "prune", given, without=_NOT_ADAPNETS, training=FINETUNE, adapnet=PRESETS[preset])
    return adapt(job, tell)


@_afresh
def detach(
    model: Path | None = None,
    *,
    data: str,
    out: Path,
    method: Literal["cnsn", "nsn"] = "cnsn",
    tell: Tell = silent,
    **settings: Unpack[DetachKeywords],
) -> "Report":
    """Make one network of several sizes, whose sub-models share its weights.

    Example:
        report = compressor.detach(
            "runs/digits/model.safetensors", exits=1, data="digits", epochs=1, out="runs/detached"
        )
        report.variants["exit 1"].macs, report.variants["exit 1"].top1
    """
    from compressor.runs.detach import detach as run

    given = {**settings, "model": model, "data": data, "out": out, "method": method}
    job = _job(DetachJob, "detach", given, training=CNSN)
    return run(replace(job, training=training_of_detaching(method, job.training, job.chosen)), tell).report


@_afresh
def route(
    model: Path | None = None, *, data: str, out: Path, tell: Tell = silent, **settings: Unpack[RouteKeywords]
) -> "Report":
    """Let each image run only the layers it needs.

    Example:
        report = compressor.route(
            "runs/digits/model.safetensors", data="digits", epochs=1, router_epochs=2, out="runs/routed"
        )
        report.after.macs      # the mean over the test images
    """
    from compressor.runs.route import route as run

    job = _job(RouteJob, "route", {**settings, "model": model, "data": data, "out": out}, training=TUNED_TRAINING)
    check_routing(job.choice, job.chosen)
    training = training_of_routing(job.choice.mode, job.training, job.chosen)
    return run(replace(job, training=training), tell).report


@_afresh
def replace_early(
    model: Path | None = None, *, data: str, out: Path, tell: Tell = silent, **settings: Unpack[ReplaceKeywords]
) -> "Report":
    """Replace the first layers by PrimeNet's block, which learns by local losses: `compressor replace`.

    Example:
        report = compressor.replace_early(
            "runs/digits/model.safetensors", until="5", fit="stride", data="digits", epochs=1, out="runs/prime"
        )
        report.after.macs
    """
    from compressor.runs.replace import replace_early as run

    given = {**settings, "model": model, "data": data, "out": out}
    return run(_job(ReplaceJob, "replace", given, training=REPRESENTATION), tell)


@_afresh
def sweep(
    model: Path,
    *,
    data: str,
    out: Path,
    methods: Sequence[str] = SweepSettings.methods,
    ratios: Sequence[float] = (0.3, 0.5, 0.7),
    tell: Tell = silent,
    **settings: Unpack[SweepKeywords],
) -> "RunComparison":
    """Prune by several methods at several ratios with one budget, and compare; called again, it does what is missing.

    Args:
        ratios: shares of the model's multiply-adds that go.

    Example:
        compared = compressor.sweep(
            "runs/digits/model.safetensors", methods=["l1"], ratios=[0.5], data="digits", epochs=1, out="runs/sweep"
        )
        [(point.run, point.macs, point.top1) for point in compared.points]
    """
    from compressor.runs.sweep import sweep as run

    given = {**settings, "model": model, "data": data, "out": out, "methods": methods, "ratios": ratios}
    return run(_job(SweepJob, "sweep", given, training=FINETUNE), tell)


@_afresh
def evaluate(model: Path, *, data: str, tell: Tell = silent, **settings: Unpack[EvaluateKeywords]) -> "Evaluated":
    """Top-1 and loss of a model, or of an .onnx file.

    Example:
        compressor.evaluate("runs/digits/model.safetensors", data="digits").top1
    """
    from compressor.runs.evaluate import evaluate as run

    return run(_job(EvaluateJob, "evaluate", {**settings, "model": model, "data": data}), tell)


@_afresh
def inspect(model: Path | None = None, *, tell: Tell = silent, **settings: Unpack[InspectKeywords]) -> "Channels":
    """Which channels of a model belong together, which can be edited, and why others cannot.

    Example:
        channels = compressor.inspect("runs/digits/model.safetensors")
        channels.frozen                      # {group: reason}
    """
    from compressor.runs.inspect import inspect as run

    return run(_job(InspectJob, "inspect", {**settings, "model": model}), tell)


@_afresh
def export(model: Path, out: Path, *, tell: Tell = silent, **settings: Unpack[ExportKeywords]) -> "Exported":
    """Write a model for another runtime, after it gave the same outputs there: a file (NAME.onnx) or a package.

    Args:
        settings: `to` ("onnx", "int8", "pt2") and the other fields of ExportJob, ModelSettings and DataSettings.

    Example:
        made = compressor.export("runs/digits/model.safetensors", "runs/digits.onnx", data="digits")
        made.files                           # {path: what it is}
    """
    from compressor.runs.export import export as run

    return run(_job(ExportJob, "export", {**settings, "model": model, "out": out}), tell)


def _job(kind: type[J], verb: str, given: Mapping[str, Any], without: frozenset[str] = frozenset(), **bases: Any) -> J:
    """The job of a verb: its settings by name, checked, the others as `bases` or the settings' own defaults have them.

    Raises:
        UsageError: a name is unknown, or a value has another type.
    """
    values = {name: _plain(value) for name, value in given.items()}
    hints = get_type_hints(kind)
    rooms: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    rooms = {name: bases[name] if name in bases else room() for name, room in rooms.items()}
    own = {name for name in hints if name not in (*rooms, "command", "chosen")}
    known = {name: get_type_hints(type(room))[name] for room in rooms.values() for name in vars(room)}
    known |= {name: hints[name] for name in own}
    for name in without:
        known.pop(name, None)
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{unknown(name, known)}; compressor.{verb} knows {', '.join(sorted(known))}")
        check_fits(name, value, known[name])
    filled = {
        name: replace(room, **{f.name: values[f.name] for f in fields(room) if f.name in values})
        for name, room in rooms.items()
    }
    chosen = tuple(name for name, value in values.items() if value is not None)
    call = f"compressor {verb} in Python: " + ", ".join(f"{name}={values[name]!r}" for name in chosen)
    filled |= {name: values[name] for name in own if name in values}
    filled |= {name: value for name, value in (("command", call), ("chosen", chosen)) if name in hints}
    make: Any = kind
    job: J = make(**filled)
    return job


def _plain(value: Any) -> Any:
    """As the settings hold it: paths as texts, lists and dicts as tuples."""
    if isinstance(value, dict):
        value = tuple(value.items())
    return os.fspath(value) if isinstance(value, os.PathLike) else tuples(value)
