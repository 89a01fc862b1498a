"""From scores to a plan: which channels go, under a ratio or a target, and in words and numbers why."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from compressor.errors import ModelError, UsageError
from compressor.graph.channels import Channels, Group
from compressor.graph.names import groups_named
from compressor.methods.catalogue import ABOUT
from compressor.methods.removal import Unit, by_score, by_share, together, units, up_to
from compressor.methods.scores import Scores, Values
from compressor.methods.settings import PruneSettings
from compressor.methods.target import meet
from compressor.surgery.edits import Plan, Prune


@dataclass(frozen=True)
class Selection:
    """A plan, what it leaves, and what a person should know about it."""

    plan: Plan
    macs: int  # multiply-adds for one image after the plan
    params: int
    refused: Mapping[str, str]  # groups that could be edited but were not scored, or had no channel to give -> why
    notes: tuple[str, ...] = ()
    round_to: int = 1  # widths that changed are multiples of this


def select(
    channels: Channels, scores: Scores, settings: PruneSettings, places: Mapping[str, Values] | None = None
) -> Selection:
    """Choose the channels with the lowest scores.

    Where `allocate` is uniform every group loses the same share; with "global" the lowest scores of the whole network
    go, with "error" those that come first by `places`, which keeps the scores' order within each group. A target
    replaces the ratio: the same order is followed until the multiply-adds are met; where multiples of `round_to` do not
    reach it, half of that is tried, and so on.

    Raises:
        UsageError: settings that leave nothing to prune, a target above what the model has, a pattern without layers.
        ModelError: nothing may be pruned, or the target cannot be reached.
    """
    multiple = settings.round_to
    while True:
        assert multiple != "auto", "whoever knows the machine puts a number in its place"
        try:
            found = _select(channels, scores, replace(settings, round_to=multiple), places)
        except ModelError:
            if settings.target_macs is None or multiple == 1:
                raise
            multiple = max(1, multiple // 2)
            continue
        if multiple == settings.round_to:
            return found
        note = f"widths are multiples of {multiple}: with multiples of {settings.round_to} the target is out of reach"
        return replace(found, notes=(note, *found.notes))


def _select(
    channels: Channels, scores: Scores, settings: PruneSettings, places: Mapping[str, Values] | None
) -> Selection:
    if not channels.free:
        raise ModelError(f"nothing was pruned: every layer is frozen; {_listed(channels.frozen)}")
    ratios = _own_ratios(channels, settings)
    across = settings.allocate != "uniform"
    stepwise = settings.target_macs is not None or across
    places = scores.values if places is None else places
    queues = {
        group.name: (units if stepwise else together)(group, places[group.name], channels, settings, most)
        for group in channels.free
        if group.name in scores.values
        for most in [ratios.get(group.name, 1 if stepwise else settings.ratio)]
    }
    fixed = [unit for name, queue in queues.items() if name in ratios for unit in queue]
    open_queues = {name: queue for name, queue in queues.items() if name not in ratios}
    notes = []
    if settings.target_macs is not None:
        order = by_score(open_queues) if across else by_share(open_queues)
        met = meet(channels, fixed, order, settings.target_macs)
        taken = met.taken
        notes = [met.note] if met.note else []
    elif across:
        total = sum(channels.group(name).size for name in open_queues)
        taken = up_to(by_score(open_queues), settings.ratio * total)
    else:
        taken = [unit for queue in open_queues.values() for unit in queue]
    return _selection(channels, scores, settings, [*fixed, *taken], notes)


def _own_ratios(channels: Channels, settings: PruneSettings) -> dict[str, float]:
    """The ratio of each group that a pattern of `ratio_for` names; the last pattern wins."""
    ratios: dict[str, float] = {}
    for pattern, ratio in settings.ratio_for:
        named = groups_named(pattern, channels, "ratio_for")
        if not named:
            raise UsageError(f"{pattern!r} in ratio_for names layers without channels that could go")
        stuck = [group for group in named if group.frozen is not None]
        if len(stuck) == len(named):
            raise UsageError(f"{pattern!r} in ratio_for names only frozen layers: {stuck[0].name}: {stuck[0].frozen}")
        ratios |= {group.name: ratio for group in named}
    return ratios


def _selection(
    channels: Channels, scores: Scores, settings: PruneSettings, taken: list[Unit], notes: list[str]
) -> Selection:
    gone: dict[str, list[int]] = {}
    for unit in taken:
        gone.setdefault(unit.group, []).extend(unit.ids.tolist())
    if not gone and settings.target_macs is not None:
        raise UsageError(
            f"nothing was pruned: the model has {channels.macs():,} MACs, nearer to the target than with any channel "
            "gone; ask for fewer"
        )
    if not gone:
        raise _nothing(channels, scores, settings)
    edits = [
        _edit(group, gone[group.name], scores.values[group.name], settings)
        for group in channels.free
        if group.name in gone
    ]
    plan = Plan(tuple(edits))
    untouched = [group for group in channels.free if group.name in scores.values and group.name not in gone]
    refused = dict(scores.refused) | {group.name: _spared(settings) for group in untouched}
    macs, params = channels.macs(plan.removed), channels.params(plan.removed)
    assert settings.round_to != "auto"
    return Selection(plan, macs, params, refused, tuple(notes), settings.round_to)


def _edit(group: Group, gone: list[int], scores: Values, settings: PruneSettings) -> Prune:
    """The prune of one group, with what decided it: the lowest and highest score that goes, the lowest that stays."""
    leaving = np.isin(group.ids, gone)
    low, high, stays = float(scores[leaving].min()), float(scores[leaving].max()), float(scores[~leaving].min())
    about = ABOUT[settings.method]
    return Prune(
        group.name,
        tuple(sorted(gone)),
        f"{settings.method}: the {len(gone)} lowest of {group.size} scores, {low:.3g} to {high:.3g} {about.score}; "
        f"the lowest that stays has {stays:.3g}",
        numbers={"lowest": low, "highest": high, "threshold": stays},
    )


def _spared(settings: PruneSettings) -> str:
    if settings.allocate != "uniform":
        return "none of its channels is among the lowest scores"
    return "the ratio, rounding and least width leave it no channel to give"


def _nothing(channels: Channels, scores: Scores, settings: PruneSettings) -> UsageError:
    largest = max(channels.group(name).size for name in scores.values)
    reasons = [
        f"a ratio of {settings.ratio:g} with round_to {settings.round_to} and min_channels {settings.min_channels} "
        f"leaves all layers as they are (the widest that may be pruned has {largest} channels)"
    ]
    if scores.refused:
        reasons.append(_listed(scores.refused))
    if channels.frozen:
        reasons.append(f"frozen: {_listed(channels.frozen)}")
    return UsageError("nothing was pruned: " + "; ".join(reasons))


def _listed(reasons: Mapping[str, str], most: int = 4) -> str:
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:most]) + more
