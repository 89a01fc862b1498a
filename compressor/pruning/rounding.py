"""Widths that suit the chip after a method that removes and adds single channels: AdapNet's, when it has ended."""

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
from torch import nn

from compressor.graph.channels import Channels, Group, Ids
from compressor.profiling.timetable import preferred_multiple
from compressor.pruning.criteria import l1
from compressor.pruning.scores import Given
from compressor.pruning.target import narrowed, step_of
from compressor.surgery.edits import Edit, Insert, Plan, Prune


def rounded(
    model: nn.Module,
    channels: Channels,
    groups: Iterable[Group],
    round_to: int | Literal["auto"],
    fits: Callable[[Plan], bool],
    period: int = 0,
) -> Plan:
    """A plan that makes the widths of groups multiples: of the next below, and of the next above as far as the plan
    then `fits`, those first that are nearest to it.

    Below, the channels with the smallest weights go; above, those with the largest are doubled and share their readers'
    columns by halves, which changes no output. A group that is narrower than one multiple stays as it is. The model is
    not changed.
    """
    multiple = preferred_multiple()[0] if round_to == "auto" else round_to
    groups = list(groups)
    steps = {
        group.name: step_of(group, channels, narrowed(multiple, group) if round_to == "auto" else multiple)
        for group in groups
    }
    ragged = [group for group in groups if group.size % steps[group.name] and group.size > steps[group.name]]
    if not ragged:
        return Plan((), period)
    scores = l1(model, channels, Given()).values
    orders = {group.name: group.ids[np.argsort(scores[group.name], kind="stable")] for group in ragged}
    chosen = {group.name: _below(group, steps[group.name], orders[group.name]) for group in ragged}
    for group in sorted(ragged, key=lambda group: -group.size % steps[group.name] / steps[group.name]):
        if group.prune_only is None:
            tried = chosen | {group.name: _above(group, steps[group.name], orders[group.name])}
            chosen = tried if fits(_plan(tried, period)) else chosen
    return _plan(chosen, period)


def _plan(chosen: dict[str, list[Edit]], period: int) -> Plan:
    return Plan(tuple(edit for edits in chosen.values() for edit in edits), period)


def _below(group: Group, step: int, order: Ids) -> list[Edit]:
    return [Prune(group.name, tuple(sorted(order[: group.size % step].tolist())), f"widths are multiples of {step}")]


def _above(group: Group, step: int, order: Ids) -> list[Edit]:
    doubled = order[group.size - -group.size % step :].tolist()
    return [Insert(group.name, each, f"widths are multiples of {step}", columns="split") for each in doubled]
