"""From scores to a plan: which channels go, under a ratio or a target, and in words and numbers why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compressor.errors import ModelError, UsageError
from compressor.graph.channels import Channels, Group
from compressor.graph.names import groups_named
from compressor.profiling.timetable import preferred_multiple
from compressor.pruning.allocate import ranks
from compressor.pruning.obs import Curve
from compressor.pruning.price import Goal, combined, in_words, macs_price, memory_goals, peak_memory, size_price
from compressor.pruning.scores import Scores, Values
from compressor.pruning.settings import ABOUT, About, PruneSettings
from compressor.pruning.target import (
    BLOCKS,
    Unit,
    by_score,
    by_share,
    cuts,
    meet,
    narrowed,
    removed,
    together,
    units,
    up_to,
)
from compressor.surgery.edits import Plan, Prune


@dataclass(frozen=True)
class Selection:
    """A plan, what it leaves, and what a person should know about it."""

    plan: Plan
    macs: int  # multiply-adds for one image after the plan
    params: int
    refused: Mapping[str, str]  # groups that could be edited but were not scored, or had no channel to give -> why
    notes: tuple[str, ...] = ()
    off: float = 0.0  # how far a target is missed, as a share of it; 0: within the tolerance
    round_to: int = 1  # widths that changed are multiples of this, unless layers are narrow


def select(
    channels: Channels,
    scores: Scores,
    settings: PruneSettings,
    curves: Mapping[str, Curve] | None = None,
    goals: Sequence[Goal] | None = None,
    whole: Channels | None = None,
) -> Selection:
    """Choose the channels with the lowest scores.

    Where `allocate` is uniform every group loses the same share; with "global" the lowest scores of the whole network
    go, with "error" those whose going costs the least error, by `curves`, for what it saves. A target replaces the
    ratio: the same order is followed until it is met (`goals`, by default those of the settings); where multiples of
    `round_to` do not reach it, half of that is tried, and so on. With "auto" widths are multiples of the blocks in
    which this machine convolves, of smaller ones in narrow layers and where a target is not met within its tolerance.
    Ratios are of the network's channels, or of those of `whole`, which lost some before.

    Raises:
        UsageError: settings that leave nothing to prune, a target above what the model has, a pattern without layers.
        ModelError: nothing may be pruned, or the target cannot be reached.
    """
    auto, goals = settings.round_to == "auto", goals_of(channels, settings) if goals is None else goals
    wanted, why = preferred_multiple() if settings.round_to == "auto" else (settings.round_to, "")
    tried: list[Selection] = []
    multiple = wanted
    while not tried or (multiple and auto and tried[-1].off):
        blocks = {group.name: narrowed(multiple, group) if auto else multiple for group in channels.free}
        try:
            tried.append(
                replace(
                    _select(channels, scores, settings, curves, goals, blocks, whole or channels), round_to=multiple
                )
            )
        except (ModelError, UsageError):
            if not tried and (multiple == 1 or not (auto or goals)):
                raise
        multiple //= 2
    found = min(tried, key=lambda each: each.off)
    note = f"widths are multiples of {found.round_to}"
    if found.round_to < wanted:
        note += f": with multiples of {wanted} the {'target' if goals else 'ratio'} is not met"
    elif auto and wanted > 1:
        note += f" where layers are {BLOCKS * wanted} wide and more, and of less in narrower ones: {why}"
    else:
        return found
    return replace(found, notes=(note, *found.notes))


def _select(
    channels: Channels,
    scores: Scores,
    settings: PruneSettings,
    curves: Mapping[str, Curve] | None,
    goals: Sequence[Goal],
    blocks: Mapping[str, int],
    whole: Channels,
) -> Selection:
    if not channels.free:
        raise ModelError(f"nothing was pruned: every layer is frozen; {listed_reasons(channels.frozen)}")
    ratios = _own_ratios(channels, settings)
    across = settings.allocate != "uniform"
    stepwise = bool(goals) or across
    groups = [group for group in channels.free if group.name in scores.values]
    share = {}
    for group in groups:
        ratio = ratios.get(group.name, 1 if stepwise else settings.ratio)
        share[group.name] = max(0.0, 1 - (1 - ratio) * whole.group(group.name).size / group.size)
    steps = {
        group.name: cuts(group, channels, blocks[group.name], settings.min_channels, share[group.name])
        for group in groups
    }
    places = scores.values if curves is None else ranks(channels, curves, steps, combined(goals))
    queues = {
        group.name: (units if stepwise else together)(group, places[group.name], steps[group.name]) for group in groups
    }
    fixed = [unit for name, queue in queues.items() if name in ratios for unit in queue]
    open_queues = {name: queue for name, queue in queues.items() if name not in ratios}
    off, notes = 0.0, tuple[str, ...]()
    if goals:
        met = meet(channels, fixed, by_score(open_queues) if across else by_share(open_queues), goals)
        taken, off, notes = met.taken, met.off, met.notes
    elif across:
        total, left = (sum(each.group(name).size for name in open_queues) for each in (whole, channels))
        taken = up_to(by_score(open_queues), settings.ratio * total - (total - left))
    else:
        taken = [unit for queue in open_queues.values() for unit in queue]
    if settings.target_ram is not None:
        before, after = peak_memory(channels), peak_memory(channels, removed([*fixed, *taken]).tolist())
        notes += (f"{after:.3g} MB of activations of one image live at once, {before:.3g} MB before",)
    return replace(_selection(channels, scores, settings, [*fixed, *taken], goals), off=off, notes=notes)


def goals_of(channels: Channels, settings: PruneSettings) -> list[Goal]:
    """What the settings want, but for milliseconds, of which only a measurement knows.

    Raises UsageError for a target that the network meets as it is.
    """
    goals = []
    if settings.target_macs is not None:
        goals.append(Goal.of(macs_price(channels), settings.target_macs))
    if settings.target_mb is not None:
        goals.append(Goal.at(size_price(channels), settings.target_mb))
    if settings.target_ram is not None:
        goals += memory_goals(channels, settings.target_ram)
    return goals


def _own_ratios(channels: Channels, settings: PruneSettings) -> dict[str, float]:
    """The ratio of each group that a pattern of `ratio_for` names; the last pattern wins."""
    ratios: dict[str, float] = {}
    for pattern, ratio in settings.ratio_for:
        named = groups_named(pattern, channels, "ratio_for")
        if not named:
            raise UsageError(f"{pattern!r} in `ratio_for` names layers without channels that could go")
        stuck = [group for group in named if group.frozen is not None]
        if len(stuck) == len(named):
            raise UsageError(f"{pattern!r} in `ratio_for` names only frozen layers: {stuck[0].name}: {stuck[0].frozen}")
        ratios |= {group.name: ratio for group in named}
    return ratios


def _selection(
    channels: Channels, scores: Scores, settings: PruneSettings, taken: list[Unit], goals: Sequence[Goal]
) -> Selection:
    gone: dict[str, list[int]] = {}
    leaving = np.zeros(channels.next_id, dtype=bool)
    for unit in taken:
        gone.setdefault(unit.group, []).extend(unit.ids.tolist())
        leaving[unit.ids] = True
    if not gone and goals:
        has = in_words(goals[0].price.whole(), goals[0].price.unit)
        raise UsageError(
            f"nothing was pruned: the model has {has}, nearer to the target than with any channel gone; ask for less"
        )
    if not gone:
        raise _nothing(channels, scores, settings)
    edits = [
        _edit(group, gone[group.name], scores.values[group.name], leaving[group.ids], settings)
        for group in channels.free
        if group.name in gone
    ]
    plan = Plan(tuple(edits))
    untouched = [group for group in channels.free if group.name in scores.values and group.name not in gone]
    refused = dict(scores.refused) | {group.name: _spared(settings) for group in untouched}
    removed = np.flatnonzero(leaving)
    macs, params = channels.macs(removed), channels.params(removed)
    return Selection(plan, macs, params, refused)


def _edit(group: Group, gone: list[int], scores: Values, leaving: NDArray[np.bool_], settings: PruneSettings) -> Prune:
    """The prune of one group, with what decided it: the lowest and highest score that goes, the lowest that stays."""
    low, high, stays = float(scores[leaving].min()), float(scores[leaving].max()), float(scores[~leaving].min())
    about = ABOUT.get(settings.method, About("", ""))
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
        f"a ratio of {settings.ratio:g} with `round_to` {settings.round_to} and `min_channels` {settings.min_channels} "
        f"leaves all layers as they are (the widest that may be pruned has {largest} channels)"
    ]
    if scores.refused:
        reasons.append(listed_reasons(scores.refused))
    if channels.frozen:
        reasons.append(f"frozen: {listed_reasons(channels.frozen)}")
    return UsageError("nothing was pruned: " + "; ".join(reasons))


def listed_reasons(reasons: Mapping[str, str], most: int = 4) -> str:
    """Why groups of channels stay as they are, in one line."""
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:most]) + more
