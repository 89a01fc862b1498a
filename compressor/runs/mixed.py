"""Whole blocks for half of the way to a target, then channels for the rest: `--method mixed`.

Blocks take time with them that narrower layers do not; the first of them cost little and the last much. So blocks go
until the cost is the geometric mean of what it was and what is wanted, and channels of what is left do the rest.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.exporting.latency import profile, side_by_side
from compressor.exporting.onnx import export_onnx
from compressor.graph import capture
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import named_tensors
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings, in_time
from compressor.report.measurements import Profile
from compressor.runs.apply import apply_plan_
from compressor.runs.blocks import Chosen, check_blocks, choose_blocks, replace_
from compressor.runs.latency_goal import check_timed, selected, target_in_ms
from compressor.runs.second_look import ranked
from compressor.surgery import Plan, operate_
from compressor.surgery.assign import assign_
from compressor.surgery.blocks import replace_blocks_


def halves(module: nn.Module, example: Any, choice: PruneSettings) -> tuple[PruneSettings, PruneSettings]:
    """The settings for the blocks, and for the channels of what these leave.

    Raises UsageError where there is no target, or the network takes several inputs.
    """
    check_blocks(example, choice)
    none: dict[str, Any] = {"target_macs": None, "target_ms": None, "speedup": None}
    if in_time(choice):
        kind, whole = "target_ms", _milliseconds(module, example, choice)
        wanted = target_in_ms(choice, whole)
    else:
        assert choice.target_macs is not None
        kind, whole = "target_macs", float(profile(module, example, layers=False).macs or 0)
        wanted = choice.target_macs * (whole if choice.target_macs <= 1 else 1)
    blocks = replace(choice, method="blocks", **{**none, kind: math.sqrt(whole * wanted)})
    return blocks, replace(choice, method="obs", allocate="error", **{**none, kind: wanted})


def _milliseconds(module: nn.Module, example: Any, choice: PruneSettings) -> float:
    check_timed(example, choice)
    shape = (1, *example.shape[1:])
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        file = Path(folder) / "whole.onnx"
        export_onnx(module, example, file)
        return min(ms for (ms,) in side_by_side((file,), shape, choice.threads, runtime=choice.runtime))


def mix_(
    module: nn.Module, example: Any, choice: PruneSettings, inputs: Sequence[Any], *, latency: bool = False
) -> tuple[Profile, Chosen, Plan, tuple[str, ...], dict[str, str]]:
    """Replace blocks and prune channels of a module, which is as it was when anything is refused.

    Returns the cost of the result, the blocks, the plan for the channels, notes, and why groups were left alone.

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
    replace_blocks_(module, chosen.edits, example)
    operate_(module, selection.plan, capture(module, example, keep=choice.keep))
    fitted = named_tensors(small)
    for name, tensor in named_tensors(module).items():
        assign_(tensor, fitted[name].detach())
    notes = (*chosen.notes, *behind.words(), *channels.notes, *selection.notes, *refit.words())
    return cost, chosen, selection.plan, notes, {**channels.frozen, **chosen.refused, **selection.refused}
