"""Widths that suit the chip after a method that removes and adds single channels: AdapNet's, when it has ended."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from torch import nn

from compressor.graph.channels import Channels, Group
from compressor.methods.allocate import Widths
from compressor.methods.l1 import l1
from compressor.methods.removal import narrowed, step_of
from compressor.methods.scores import Given
from compressor.profiling.chip import preferred_multiple
from compressor.surgery.edits import Edit, Insert, Plan, Prune


def rounded(
    model: nn.Module,
    channels: Channels,
    groups: Iterable[Group],
    round_to: int | Literal["auto"],
    limit: float,
    period: int = 0,
) -> Plan:
    """A plan that makes the widths of groups multiples: of the next below, and of the next above while at most `limit`
    multiply-adds remain, those first that are nearest to it.

    Below, the channels with the smallest weights go; above, those with the largest are doubled and share their readers'
    columns by halves, which changes no output. A group stays as it is where it is narrower than one multiple. The model
    is not changed.
    """
    auto = round_to == "auto"
    multiple = preferred_multiple()[0] if round_to == "auto" else round_to
    numbers = {group.name: number for number, group in enumerate(channels.free)}
    widths, macs = Widths(channels), channels.macs()
    gaps = []
    for group in groups:
        step = step_of(group, channels, narrowed(multiple, group) if auto else multiple)
        below = group.size % step
        if below and group.size > step and group.name in numbers:
            macs -= widths.saved(numbers[group.name], below)
            widths.remove(numbers[group.name], below)
            gaps.append((step - below, step, group))
    scores = l1(model, channels, Given()).values if gaps else {}
    edits: list[Edit] = []
    for above, step, group in sorted(gaps, key=lambda gap: gap[0] / gap[1]):
        number, below = numbers[group.name], step - above
        more = -widths.saved(number, -step)
        order = group.ids[np.argsort(scores[group.name], kind="stable")]
        why = f"widths are multiples of {step}"
        if group.prune_only is None and macs + more <= limit:
            macs += more
            widths.remove(number, -step)
            edits += [Insert(group.name, int(each), why, columns="split") for each in order[group.size - above :]]
        else:
            edits.append(Prune(group.name, tuple(sorted(order[:below].tolist())), why))
    return Plan(tuple(edits), period)
