"""Decide in one look at a trained network: score its channels by a method of the table, and select."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from compressor.errors import UsageError
from compressor.graph.channels import Channels
from compressor.pruning.consumers import consumers
from compressor.pruning.obs import Curve, calibrated, curves
from compressor.pruning.scores import Given, Score, Scores, complete, in_order
from compressor.pruning.selection import Selection, select
from compressor.pruning.settings import PruneSettings, check, looks_at_inputs, resolved, score_of

NO_DATA = Given()


class Ranked(NamedTuple):
    """Scores of every channel, and the error curves of groups where these decide how much of each goes."""

    scores: Scores
    curves: Mapping[str, Curve] | None = None


def rank(
    model: nn.Module,
    channels: Channels,
    settings: PruneSettings,
    given: Given = NO_DATA,
    score: Score | None = None,
) -> Ranked:
    """Judge every channel by what is given; the model is not changed.

    `score` is the user's own method, named in the settings, in place of one of the table.

    Raises:
        UsageError: a setting is out of its range, or the method needs data.
        ModelError: weights are not finite.
    """
    check(settings, has_data=bool(given.inputs if settings.method == "obs" else given.batches or given.changes))
    if settings.allocate == "error" and not given.inputs:
        raise UsageError("allocate by error looks at data: give some, or choose uniform or global")
    scores, by_obs = Scores({}), settings.method == "obs"
    if not by_obs:
        scores = (score or score_of(settings.method))(model, channels, replace(given, seed=settings.seed))
        scores = complete(scores, channels, settings.method) if score is not None else scores
    if not channels.free or not looks_at_inputs(settings):
        return Ranked(scores)
    orders = None if by_obs else {name: channels.group(name).ids[np.argsort(values, kind="stable")]
                                  for name, values in scores.values.items()}  # fmt: skip
    found = curves(model, channels, consumers(model, channels, given.inputs), orders)
    by_error = settings.allocate == "error"
    if by_error:
        found = calibrated(model, found, given.inputs)
    return Ranked(as_scores(channels, found) if by_obs else scores, found if by_error else None)


def decide(
    model: nn.Module,
    channels: Channels,
    settings: PruneSettings,
    given: Given = NO_DATA,
    judge: Callable[..., Ranked] = rank,
) -> Selection:
    """Choose what to prune; the model is not changed. Arguments and errors are those of `rank` and `select`.

    `judge` takes the place of `rank`, such as `runs.second_look.ranked`.
    """
    settings = resolved(settings, has_inputs=bool(given.inputs))
    ranked = judge(model, channels, settings, given)
    return select(channels, ranked.scores, settings, ranked.curves)


def as_scores(channels: Channels, found: Mapping[str, Curve]) -> Scores:
    """Of every channel the error of its group when it goes, after those before it."""
    values = {}
    for group in channels.free:
        each = found[group.name]
        values[group.name] = in_order(np.append(each.errors[1:], np.inf), each.ids, group.ids)
    return Scores(values)


_SHARES = (0.1, 0.3, 0.5)


def sensitivity(model: nn.Module, channels: Channels, inputs: Sequence[Any]) -> dict[str, dict[float, float]]:
    """For each free group, by the share of its channels that goes: how far the outputs move when what reads them is
    refitted, in shares of the outputs' variance.

    To first order, from one pass over `inputs`, batches as the model takes them. The model is not changed. Shares are
    rounded to whole channels, of which one goes at least.
    """
    found = calibrated(model, curves(model, channels, consumers(model, channels, inputs)), inputs)
    return {
        name: {share: float(each.errors[max(1, round(share * len(each.errors)))]) for share in _SHARES}
        for name, each in found.items()
        if len(each.errors) > 1
    }
