"""Prune a module in place, in one call from Python: `compressor.prune_`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.errors import ModelError, UsageError
from compressor.exporting.latency import profile
from compressor.graph import capture
from compressor.graph.neutral import bare, neutrally
from compressor.graph.tensors import device_of, has_data
from compressor.pruning.reconstruction import inputs_of
from compressor.pruning.scores import Given, Score
from compressor.pruning.settings import BLOCKS, PruneSettings, check, resolved
from compressor.report.environment import device_words, versions
from compressor.report.measurements import Measurements, Profile
from compressor.report.report import Report
from compressor.runs.apply import apply_plan_
from compressor.runs.blocks import choose_blocks, replace_
from compressor.runs.latency_goal import selected
from compressor.runs.mixed import mix_
from compressor.runs.own import criterion, in_words
from compressor.runs.results import filters, layer_sizes
from compressor.runs.second_look import ranked
from compressor.settings import filled
from compressor.surgery.assign import check_no_reducer
from compressor.surgery.edits import rows_of


@neutrally
def prune_(
    module: nn.Module,
    example: Any,
    method: str | Score = PruneSettings.method,
    ratio: float = PruneSettings.ratio,
    *,
    target_macs: float | None = PruneSettings.target_macs,
    target_ms: float | None = PruneSettings.target_ms,
    speedup: float | None = PruneSettings.speedup,
    runtime: Literal["onnxruntime", "openvino"] = PruneSettings.runtime,
    target_mb: float | None = PruneSettings.target_mb,
    target_ram: float | None = PruneSettings.target_ram,
    allocate: str = PruneSettings.allocate,
    round_to: int | Literal["auto"] = PruneSettings.round_to,
    min_channels: int = PruneSettings.min_channels,
    ratio_for: Iterable[tuple[str, float]] = PruneSettings.ratio_for,
    keep: Iterable[str] = PruneSettings.keep,
    also: Iterable[str] | Mapping[str, Any] = PruneSettings.also,
    seed: int = PruneSettings.seed,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    data: Iterable[Any] | Literal["synthetic"] | None = None,
    optimizer: Optimizer | None = None,
    latency: bool = False,
) -> Report:
    """Prune channels of a network in place, in one shot: nothing is trained.

    Parameters stay the same objects, with their hooks. An optimizer that has made steps keeps state of the old shapes:
    give it here, or make a new one. Whatever is refused leaves module and optimizer as they were.

    Args:
        example: an input as the module takes it, (batch, channels, height, width), or a tuple or dict of inputs.
        method: "obs", "l1", "l2", "bn-scale", "fpgm", "taylor" or "random"; "auto": obs with `data`, l1 without;
            "blocks": whole blocks of layers in place of channels, by `data`, until `target_macs`, `target_ms` or
            `speedup` is met; "mixed": the best of channels, blocks and both; or a function `(model, channels, given)
            -> Scores` of your own, or "FILE.py:score".
        ratio: share of the channels that go, 0 to below 1: of every layer where `allocate` is uniform, else of all.
        target_macs: in place of a ratio, the multiply-adds that stay: up to 1 as a share, above as a number.
        target_ms: the same in milliseconds for one image, in ONNX Runtime on one thread of this machine. Layers are
            timed, once and for all networks that have them, and the plan is measured. Several targets are all met.
        speedup: in place of a ratio, how many times as fast, by the same measure.
        runtime: what times are measured on, "onnxruntime" or "openvino".
        target_mb: the same in megabytes of float32 weights.
        target_ram: the same in megabytes of float32 activations of one image that live at once, as `profile` counts.
        allocate: how much of each layer goes: "uniform" (the same share), "global" (the lowest scores of the whole
            network), "error" (the least error of the outputs for each multiply-add saved; needs `data`); "auto": by
            error with `data`, uniform without.
        round_to: widths that change become multiples of this; "auto": of what this machine's processor likes, in
            narrow layers of less.
        min_channels: how many stay in every layer at least.
        ratio_for: (name, ratio) for layers with a ratio of their own, or a dict.
        keep: names of layers that stay as they are: a layer, a block, a parameter, a norm; "layer?.0.conv1" matches
            several.
        also: names of methods that are used besides `forward`; a dict gives each an example of its own.
        batches: images and labels, normalised as the module takes them, for methods that look at data ("taylor").
        data: a loader, whose batches are inputs as the module takes them, or tuples or dicts that hold these; needs no
            labels. Channels are chosen by them, and layers that read what was pruned are refitted by least squares to
            what the module gave. "synthetic": there are none; layers are refitted on images made up, where the module
            takes one tensor of images, signals or volumes.
        optimizer: one of the module's parameters, whose state is edited alike.
        latency: also measure milliseconds before and after, which takes some ten seconds.

    Raises:
        UsageError: a setting is out of its range or names no layer, or nothing would be pruned.
        ModelError: the module does not run on the example, or has nothing that may be pruned.
        DataError: the batches do not fit the module.

    Example:
        report = compressor.prune_(module, torch.zeros(1, 3, 224, 224), method="l1", ratio=0.5)
        report.before.macs, report.after.macs       # 1814073344, 483149824
        report.frozen                               # {"fc": "output of the model"}
    """
    score = criterion(method)
    given = checked(
        method=method if isinstance(method, str) else in_words(method), ratio=ratio,
        target_macs=target_macs, target_ms=target_ms, speedup=speedup, runtime=runtime, target_mb=target_mb,
        target_ram=target_ram, allocate=allocate,
        round_to=round_to, min_channels=min_channels, ratio_for=ratio_for, keep=keep, also=also, seed=seed,
    )  # fmt: skip
    choice = filled(PruneSettings(), given)
    images = labelled(batches)
    synthetic = isinstance(data, str)
    if synthetic and data != "synthetic":
        raise UsageError(f'data is {data!r}: give a loader, or "synthetic" where there are no images')
    data = None if synthetic else data
    choice = resolved(choice, has_inputs=data is not None)
    check(choice, has_data=bool(images) or (data is not None and choice.method in ("obs", *BLOCKS)))
    module = bare(module)
    check_can_be_edited(module)
    if optimizer is not None:
        check_optimizer(module, optimizer)
    inputs = () if data is None else inputs_of(data, example, module)
    if choice.method in BLOCKS:
        if optimizer is not None or also:
            raise UsageError(
                f"{choice.method} makes new layers: leave out `optimizer` and make one afterwards, and `also`"
            )
        replace_them_ = _replace_blocks_ if choice.method == "blocks" else _mix_
        return replace_them_(module, example, choice, inputs, latency)
    channels = capture(module, example, keep=choice.keep, also=also)
    found = ranked(module, channels, choice, Given(images, inputs), score)
    selection = selected(module, example, channels, found, choice)
    widths, before = filters(module), profile(module, example, latency=latency, layers=False)
    after, refit = apply_plan_(
        module, selection.plan, channels, example, optimizer, inputs="synthetic" if synthetic else inputs,
        latency=latency,
    )  # fmt: skip
    return _report(
        module, choice, before, after, widths,
        edits=tuple(selection.plan.rows()),
        frozen=channels.frozen,
        refused=dict(selection.refused),
        notes=(*channels.notes, *selection.notes, *refit.words()),
    )  # fmt: skip


def _replace_blocks_(
    module: nn.Module, example: Any, choice: PruneSettings, inputs: Sequence[Any], latency: bool
) -> Report:
    """Choose blocks, and put what was chosen in their places."""
    chosen = choose_blocks(module, example, inputs, choice)
    widths, before = filters(module), profile(module, example, latency=latency, layers=False)
    after, refit = replace_(module, chosen.edits, example, inputs, latency=latency)
    edits, refused = tuple(rows_of(chosen.edits)), dict(chosen.refused)
    notes = (*chosen.notes, *refit.words())
    return _report(module, choice, before, after, widths, edits=edits, refused=refused, notes=notes)


def _mix_(module: nn.Module, example: Any, choice: PruneSettings, inputs: Sequence[Any], latency: bool) -> Report:
    """Blocks, and channels of what they leave."""
    widths, before = filters(module), profile(module, example, latency=latency, layers=False)
    after, facts = mix_(module, example, choice, inputs, latency=latency)
    return _report(module, choice, before, after, widths, **facts)


def _report(
    module: nn.Module, choice: PruneSettings, before: Profile, after: Profile, widths: dict[str, int], **more: Any
) -> Report:
    missing = {"top1": "no data was given"}
    return Report(
        command="compressor.prune_",
        settings=asdict(choice),
        seed=choice.seed,
        versions=versions(),
        device=device_words(device_of(module)),
        before=Measurements.of(before, reasons=missing),
        after=Measurements.of(after, reasons=missing),
        layers=layer_sizes(widths, filters(module)),
        **more,
    )


def checked(**given: Any) -> dict[str, Any]:
    """Settings of pruning, each of the type that it has to be; a name alone is a list of one."""
    for name, value in given.items():
        if name in ("keep", "also") and isinstance(value, str):
            value = (value,)
        if name == "ratio_for" and isinstance(value, Mapping):
            value = value.items()
        if name in ("keep", "also", "ratio_for") and isinstance(value, Iterable) and not isinstance(value, str):
            value = tuple(value)
        given[name] = value.item() if isinstance(value, np.generic) else value
    return given


def labelled(batches: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    readable = isinstance(batches, Iterable) and not isinstance(batches, Tensor)
    found = tuple(batches) if readable else ()
    pairs = (isinstance(pair, tuple | list) and [isinstance(each, Tensor) for each in pair] for pair in found)
    if not readable or not all(pair == [True, True] for pair in pairs):
        raise UsageError("batches are pairs of images and labels, such as [(images, labels)]")
    return tuple((images, labels) for images, labels in found)


def check_can_be_edited(module: nn.Module) -> None:
    """Raise what is known before anything is decided: weights without values, a reducer that keeps the old sizes."""
    parameters = dict(module.named_parameters())
    empty = next((name for name, parameter in parameters.items() if not has_data(parameter)), None)
    if empty is not None:
        raise ModelError(f"{empty} has no values (it is on the meta device or fake): load the weights first")
    check_no_reducer(parameters.values())


def check_optimizer(module: nn.Module, optimizer: Optimizer) -> None:
    """Raise UsageError for an optimizer of another network."""
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
        raise UsageError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    own = set(map(id, module.parameters()))
    if own.isdisjoint(id(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        raise UsageError("the optimizer holds no parameter of the module: give the one that trains it")
