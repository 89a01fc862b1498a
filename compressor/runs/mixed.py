"""Whole blocks for half of the way to a target, then channels for the rest: `--method mixed`.

Blocks take time with them that narrower layers do not; the first of them cost little and the last much. So blocks go
until the cost is the geometric mean of what it was and what is wanted, and channels of what is left do the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from compressor.graph import capture
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import named_tensors
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings, in_time
from compressor.report.measurements import Profile
from compressor.runs.apply import apply_plan_
from compressor.runs.blocks import choose_blocks, goal_of, replace_
from compressor.runs.latency_goal import selected
from compressor.runs.second_look import ranked
from compressor.surgery import operate_
from compressor.surgery.assign import take_weights_
from compressor.surgery.blocks import replace_blocks_
from compressor.surgery.edits import rows_of
from compressor.surgery.snapshot import Snapshot, all_or_nothing


def halves(module: nn.Module, example: Any, choice: PruneSettings) -> tuple[PruneSettings, PruneSettings]:
    """The settings for the blocks, and for the channels of what these leave.

    Raises UsageError where there is no target, or the network takes several inputs.
    """
    goal = goal_of(module, example, choice)
    kind = "target_ms" if in_time(choice) else "target_macs"
    none: dict[str, Any] = {"target_macs": None, "target_ms": None, "speedup": None}
    blocks = replace(choice, method="blocks", **{**none, kind: math.sqrt(goal.price.whole() * goal.wanted)})
    return blocks, replace(choice, method="obs", allocate="error", **{**none, kind: goal.wanted})


def mix_(
    module: nn.Module, example: Any, choice: PruneSettings, inputs: Sequence[Any], *, latency: bool = False
) -> tuple[Profile, dict[str, Any]]:
    """Replace blocks and prune channels of a module, which is as it was when anything is refused.

    Returns the cost of the result, and what a report says of the edits.

    Raises:
        UsageError: there is no target, or it makes no sense.
        ModelError: the network has no blocks or channels for it, or the target cannot be reached.
    """
    small = skeleton(module, real=True)
    first, rest = halves(module, example, choice)
    chosen = choose_blocks(small, example, inputs, first)
    _, behind = replace_(small, chosen.edits, example, inputs)
    channels = capture(small, example, keep=choice.keep)
    selection = selected(small, example, channels, ranked(small, channels, rest, Given((), inputs)), rest)
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
