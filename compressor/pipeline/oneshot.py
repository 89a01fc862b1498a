"""Prune a module in place, in one call from Python: `compressor.prune_`."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.graph.trace import call_arguments
from compressor.methods.oneshot import decide
from compressor.methods.settings import PruneSettings
from compressor.pipeline.measuring import filters, layer_sizes
from compressor.pipeline.rounding import chosen_multiple
from compressor.profiling.model_profile import profile
from compressor.reporting.environment import device_words, versions
from compressor.reporting.report import Measurements, Report
from compressor.surgery import Plan, operate_
from compressor.training.evaluate import device_of, evaluating


def prune_(
    module: nn.Module,
    example: Any,
    method: str = PruneSettings.method,
    ratio: float = PruneSettings.ratio,
    *,
    target_macs: float | None = PruneSettings.target_macs,
    scope: str = PruneSettings.scope,
    round_to: int | Literal["auto"] = PruneSettings.round_to,
    min_channels: int = PruneSettings.min_channels,
    ratio_for: Iterable[tuple[str, float]] = PruneSettings.ratio_for,
    keep: Iterable[str] = PruneSettings.keep,
    seed: int = PruneSettings.seed,
    batches: Sequence[tuple[Tensor, Tensor]] = (),
    latency: bool = False,
) -> Report:
    """Prune channels of a network in place, in one shot: nothing is trained.

    Parameters stay the same objects, so an optimizer made before has to be made anew, or edited by `surgery.operate_`.

    Args:
        example: an input as the module takes it, (batch, channels, height, width), or a tuple or dict of inputs.
        method: "l1", "l2", "bn-scale", "fpgm", "taylor" or "random".
        ratio: share of the channels that go, 0 to below 1; without `scope="global"` of every layer.
        target_macs: in place of a ratio, the multiply-adds that stay: up to 1 as a share, above as a number.
        scope: "layer" or "global" (the lowest scores of the whole network).
        round_to: widths that change become multiples of this; "auto": of what this machine's processor likes.
        min_channels: how many stay in every layer at least.
        ratio_for: (pattern of layer names, ratio) for layers with a ratio of their own.
        keep: patterns of layer names that stay as they are.
        batches: images and labels, normalised as the module takes them, for methods that look at data ("taylor").
        latency: also measure milliseconds before and after, which takes some ten seconds.

    Raises:
        UsageError: a setting is out of its range, or nothing would be pruned; the module is as it was.
        ModelError: the module does not run on the example, or has nothing that may be pruned.

    Example:
        report = compressor.prune_(module, torch.zeros(1, 3, 224, 224), method="l1", ratio=0.5)
        report.before.macs, report.after.macs       # 1814073344, 483149824
        report.frozen                               # {"fc": "output of the model"}
    """
    choice = PruneSettings(
        method=method,
        ratio=ratio,
        target_macs=target_macs,
        scope=scope,  # type: ignore[arg-type]  # checked by `decide`
        round_to=round_to,
        min_channels=min_channels,
        ratio_for=tuple(ratio_for),
        keep=tuple(keep),
        seed=seed,
    )
    choice = chosen_multiple(choice)
    channels = capture(module, example, keep=choice.keep)
    selection = decide(module, channels, choice, batches)
    missing = {"top1": "no data was given"}
    widths = filters(module)
    before = Measurements.of(profile(module, example, latency=latency, layers=False), reasons=missing)
    apply_plan_(module, selection.plan, channels, example)
    after = Measurements.of(profile(module, example, latency=latency, layers=False), reasons=missing)
    return Report(
        command="compressor.prune_",
        settings=asdict(choice),
        seed=seed,
        versions=versions(),
        device=device_words(device_of(module)),
        before=before,
        after=after,
        edits=tuple(selection.plan.rows()),
        frozen=channels.frozen,
        refused=dict(selection.refused),
        layers=layer_sizes(widths, filters(module)),
        notes=(*channels.notes, *selection.notes),
    )


def apply_plan_(module: nn.Module, plan: Plan, channels: Channels, example: Any) -> Channels:
    """Carry out a plan and run the module once; returns the channels as they stand then.

    Raises:
        ModelError: the edited module does not run, which `capture` should have foreseen.
    """
    updated = operate_(module, plan, channels)
    arguments, keywords = call_arguments(example)
    try:
        with evaluating(module), torch.no_grad():
            module(*arguments, **keywords)
    except Exception as error:  # the user's own code may fail in any way
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        touched = ", ".join(edit.group for edit in plan.edits[:4])
        raise ModelError(f"the pruned network no longer runs ({first}): keep some of {touched} as they are") from error
    return updated
