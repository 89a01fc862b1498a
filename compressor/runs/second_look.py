"""Judge channels once more where half of the way is gone: what groups lose together is more than what each loses alone.

The error curves of `pruning.obs` are of single groups in the whole network. So a copy is cut half-way, refitted, and
judged again; each curve goes on from where it was cut with what was found there.
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


def ranked(
    model: nn.Module,
    channels: Channels,
    settings: PruneSettings,
    given: Given = NO_DATA,
    score: Score | None = None,
    tell: Callback = silent,
) -> Ranked:
    """Judge every channel, by errors twice: from half-way to the target on as things are there, unless that is near.

    The order of channels is found anew by `obs` alone. The model is not changed. Arguments and errors are those of
    `rank`; `tell` hears of the least squares half-way.
    """
    first = rank(model, channels, settings, given, score)
    if first.curves is None:
        return first
    plan = _half_way(channels, settings, first)
    if plan is None:
        return first
    few = fewer(given.inputs, *JUDGED)
    small = skeleton(model, real=True)
    after = operate_(small, plan, channels)
    if not after.free:  # each group is down to one channel
        return first
    reconstruct_(small, model, channels, plan, fewer(few, *_REFITTED), parts("least squares half of the way", tell))
    by_obs = settings.method == "obs"
    orders = None if by_obs else {
        name: each.ids[~np.isin(each.ids, plan.removed)] for name, each in first.curves.items()
    }  # fmt: skip
    again = calibrated(small, curves(small, after, consumers(small, after, few), orders), few)
    joined = {name: _joined(each, plan, again[name]) for name, each in first.curves.items() if name in again}
    found = {**first.curves, **joined}
    return Ranked(as_scores(channels, found) if by_obs else first.scores, found)


def _half_way(channels: Channels, settings: PruneSettings, first: Ranked) -> Plan | None:
    """The plan of the first half, in shares that multiply to the whole; None where the target is near, or none."""
    goals = goals_of(channels, settings)
    if in_time(settings):  # the time of half the way is not known
        goals.append(Goal.of(macs_price(channels), 1 / max(settings.speedup or 2.0, 1.1)))
    left = min((goal.wanted / goal.price.whole() for goal in goals), default=1 - settings.ratio)
    if left > _NEAR:
        return None
    halves = [replace(goal, wanted=math.sqrt(goal.price.whole() * goal.wanted)) for goal in goals]
    half = replace(settings, ratio=1 - math.sqrt(1 - settings.ratio), round_to=1)
    try:
        return select(channels, first.scores, half, first.curves, halves).plan
    except (ModelError, UsageError):  # of what cannot be reached, or is nothing, the whole way tells
        return None


def _joined(first: Curve, plan: Plan, second: Curve) -> Curve:
    """The first curve up to where the plan cut it, then the second."""
    gone = np.isin(first.ids, plan.removed)
    count = int(gone.sum())
    ids = np.concatenate([first.ids[gone], second.ids])
    return Curve(ids, np.concatenate([first.errors[:count], first.errors[count] + second.errors]))
