"""Whole blocks for some of the way to a target, then channels for the rest: `--method mixed`.

Blocks take time with them that narrower layers do not; the first of them cost little and the last much. How far they
should go depends on the network. So three ways are tried: channels alone, blocks until the cost is the geometric mean
of what it was and what is wanted, and blocks alone. The one whose outputs move least on images held back is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from compressor.errors import ModelError, UsageError
from compressor.graph import capture
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import named_tensors
from compressor.pruning.blocks import Movement
from compressor.pruning.price import Goal
from compressor.pruning.reconstruction import Reconstruction
from compressor.pruning.reconstruction.calibration import fewer
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings, in_time
from compressor.report import units
from compressor.report.measurements import Profile
from compressor.runs.apply import apply_plan_
from compressor.runs.block_costs import block_costs
from compressor.runs.blocks import Chosen, block_chooser, chosen_before, replace_
from compressor.runs.latency_goal import selected
from compressor.runs.plans import selection_of, structure_of
from compressor.runs.second_look import ranked
from compressor.runs.stages import Callback, Stage, silent
from compressor.surgery import operate_
from compressor.surgery.assign import take_weights_
from compressor.surgery.blocks import replace_blocks_
from compressor.surgery.edits import rows_of
from compressor.surgery.snapshot import Snapshot, all_or_nothing

_WAYS = {0.0: "channels alone", 0.5: "blocks for half of the way, then channels", 1.0: "blocks alone"}
_HELD_BACK = 64  # images at least that ways are compared on


def of_channels(choice: PruneSettings, goal: Goal) -> PruneSettings:
    """The settings for the channels of what blocks leave: what the network as it came is to cost."""
    none: dict[str, Any] = {"target_macs": None, "target_ms": None, "speedup": None}
    kind = "target_ms" if in_time(choice) else "target_macs"
    return replace(choice, method="obs", allocate="error", **{**none, kind: goal.wanted})


def decide(
    module: nn.Module, example: Any, choice: PruneSettings, inputs: Sequence[Any], tell: Callback = silent
) -> dict[str, Any]:
    """What becomes of channels, and under "blocks" of blocks, as plain types; see `structure_of`. Nothing is changed.

    Raises:
        UsageError: there is no target, or it makes no sense.
        ModelError: the target cannot be reached in any way.
    """
    held = fewer(inputs[::-1], 0, _HELD_BACK)
    given = inputs[: len(inputs) - len(held)] or inputs
    movement = Movement(module, held)
    found: dict[float, tuple[float, dict[str, Any]]] = {}
    ways, failed = list(_WAYS), list[str]()
    with block_costs(module, example, choice, tell) as costs:
        rest = of_channels(choice, costs.goal)
        try:
            choose = block_chooser(costs, given)
        except ModelError as error:  # no blocks
            ways, failed, choose = [0.0], [str(error)], _no_blocks
        for share in ways:
            tell(Stage(f"trying {_WAYS[share]}"))
            try:
                small, structure = _tried(module, example, rest, given, choose if share else _no_blocks, share)
                found[share] = movement.of(small), structure
            except (ModelError, UsageError) as error:
                if share == 0.0 and isinstance(error, UsageError):
                    raise
                failed.append(f"{_WAYS[share]} does not do: {error}")
    if not found:
        raise ModelError("; ".join(failed))
    best, *others = sorted(found, key=lambda share: found[share][0])
    moved, structure = found[best]
    notes = [f"{_WAYS[best]}: the outputs move by {units.share(moved)} of their variance on images held back"]
    notes += [f"{_WAYS[share]} would move them by {units.share(found[share][0])}" for share in others]
    return {**structure, "notes": [*notes, *failed, *structure["notes"]]}


def _no_blocks(share: float) -> Chosen:
    return Chosen((), {})


def _tried(
    module: nn.Module,
    example: Any,
    rest: PruneSettings,
    inputs: Sequence[Any],
    choose: Callable[[float], Chosen],
    share: float,
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy after one of the ways, and what became of its channels and blocks."""
    small, structure = skeleton(module, real=True), structure_of((), {}, ())
    chosen = choose(share)
    if chosen.edits:
        replace_(small, chosen.edits, example, inputs)
    if share < 1:
        channels = capture(small, example, keep=rest.keep)
        selection = selected(small, example, channels, ranked(small, channels, rest, Given((), inputs)), rest)
        apply_plan_(small, selection.plan, channels, example, inputs=inputs)
        structure = structure_of(selection.plan.edits, selection.refused, selection.notes)
    return small, {**structure, "blocks": structure_of(chosen.edits, chosen.refused, chosen.notes)}


def mix_(
    module: nn.Module, example: Any, choice: PruneSettings, inputs: Sequence[Any], *, latency: bool = False
) -> tuple[Profile, dict[str, Any]]:
    """Replace blocks and prune channels of a module, which is as it was when anything is refused.

    Returns the cost of the result, and what a report says of the edits.

    Raises:
        UsageError: there is no target, or it makes no sense.
        ModelError: the target cannot be reached.
    """
    small, structure = skeleton(module, real=True), decide(module, example, choice, inputs)
    chosen, behind = chosen_before(small, example, inputs, choice, structure["blocks"]), Reconstruction()
    if chosen.edits:
        _, behind = replace_(small, chosen.edits, example, inputs)
    channels = capture(small, example, keep=choice.keep)
    selection = selection_of(structure, channels)
    cost, refit = apply_plan_(small, selection.plan, channels, example, inputs=inputs, latency=latency)
    with all_or_nothing(Snapshot.of(module, copies=False)):
        replace_blocks_(module, chosen.edits, example)
        operate_(module, selection.plan, capture(module, example, keep=choice.keep))
        take_weights_(module, named_tensors(small))
    return cost, {
        "edits": (*rows_of(chosen.edits), *selection.plan.rows()),
        "frozen": channels.frozen,
        "refused": {**chosen.refused, **selection.refused},
        "notes": (*chosen.notes, *behind.words(), *channels.notes, *selection.notes, *refit.words()),
    }
