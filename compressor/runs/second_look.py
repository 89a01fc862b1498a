"""Judge channels again where a part of the way is gone: what groups lose together is more than what each loses alone.

The error curves of `pruning.obs` are of single groups in the whole network. So a copy is cut part of the way, refitted,
and judged again; each curve goes on from where it was cut with what was found there.
"""

import math
from dataclasses import replace

import numpy as np
from torch import nn

from compressor.errors import ModelError, UsageError
from compressor.graph.channels import Channels
from compressor.graph.skeleton import skeleton
from compressor.pruning.consumers import JUDGED, consumers
from compressor.pruning.obs import Curve, calibrated, curves
from compressor.pruning.oneshot import NO_DATA, Ranked, as_scores, rank
from compressor.pruning.price import Goal, macs_price
from compressor.pruning.reconstruction.calibration import fewer
from compressor.pruning.reconstruction.solve import reconstruct_
from compressor.pruning.scores import Given, Score
from compressor.pruning.selection import goals_of, select
from compressor.pruning.settings import PruneSettings, in_time
from compressor.runs.stages import Callback, parts, silent
from compressor.surgery import Plan, operate_

_REFITTED = (1 << 21, 32)  # values, and images, at least, that a copy is refitted on to be judged
_NEAR = 0.8  # of a cost that stays: so much is gone at one look
_MOST_LOOKS = 4


def ranked(
    model: nn.Module,
    channels: Channels,
    settings: PruneSettings,
    given: Given = NO_DATA,
    score: Score | None = None,
    tell: Callback = silent,
) -> Ranked:
    """Judge every channel, by errors again and again on the way to the target, unless that is near.

    The order of channels is found anew by `obs` alone. The model is not changed. Arguments and errors are those of
    `rank`; `tell` hears of the least squares on the way.
    """
    known = rank(model, channels, settings, given, score)
    if known.curves is None:
        return known
    found, few, by_obs = known.curves, fewer(given.inputs, *JUDGED), settings.method == "obs"
    looks = _looks(channels, settings)
    for look in range(1, looks):
        plan = _part_way(channels, settings, known, look / looks)
        if plan is None:
            break
        small = skeleton(model, real=True)
        after = operate_(small, plan, channels)
        if not after.free:  # each group is down to one channel
            break
        part = parts(f"least squares {look / looks:.0%} of the way", tell)
        reconstruct_(small, model, channels, plan, fewer(few, *_REFITTED), part)
        orders = None if by_obs else {
            name: each.ids[~np.isin(each.ids, plan.removed)] for name, each in found.items()
        }  # fmt: skip
        again = calibrated(small, curves(small, after, consumers(small, after, few), orders), few)
        joined = {name: _joined(each, plan, again[name]) for name, each in found.items() if name in again}
        found = {**found, **joined}
        known = Ranked(as_scores(channels, found) if by_obs else known.scores, found)
    return known


def _goals(channels: Channels, settings: PruneSettings) -> list[Goal]:
    goals = goals_of(channels, settings)
    if in_time(settings):  # the time of a part of the way is not known
        goals.append(Goal.of(macs_price(channels), 1 / max(settings.speedup or 2.0, 1.1)))
    return goals


def _looks(channels: Channels, settings: PruneSettings) -> int:
    """How often channels are judged: once where the target is near, else twice, and again for every further half."""
    goals = _goals(channels, settings)
    left = min((goal.wanted / goal.price.whole() for goal in goals), default=1 - settings.ratio)
    return 1 if left > _NEAR else max(2, min(_MOST_LOOKS, math.ceil(-math.log2(max(left, 1e-9)))))


def _part_way(channels: Channels, settings: PruneSettings, known: Ranked, part: float) -> Plan | None:
    """The plan of a part of the way, in shares that multiply to the whole; None where there is none."""
    goals = [
        replace(goal, wanted=goal.price.whole() ** (1 - part) * goal.wanted**part)
        for goal in _goals(channels, settings)
    ]
    partial = replace(settings, ratio=1 - (1 - settings.ratio) ** part, round_to=1)
    try:
        return select(channels, known.scores, partial, known.curves, goals).plan
    except (ModelError, UsageError):  # of what cannot be reached, or is nothing, the whole way tells
        return None


def _joined(first: Curve, plan: Plan, second: Curve) -> Curve:
    """The first curve up to where the plan cut it, then the second."""
    gone = np.isin(first.ids, plan.removed)
    count = int(gone.sum())
    ids = np.concatenate([first.ids[gone], second.ids])
    return Curve(ids, np.concatenate([first.errors[:count], first.errors[count] + second.errors]))
