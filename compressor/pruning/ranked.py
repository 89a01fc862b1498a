"""What a method found of every channel: scores, and how much error it costs as a group loses more and more of them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from compressor.graph.channels import Channels
from compressor.pruning.obs import Curve
from compressor.pruning.scores import Scores, in_order


class Ranked(NamedTuple):
    """Scores of every channel, and the error curves of groups where these decide how much of each goes."""

    scores: Scores
    curves: Mapping[str, Curve] | None = None


def as_scores(channels: Channels, found: Mapping[str, Curve]) -> Scores:
    """Of every channel the error of its group when it goes, after those before it."""
    values = {}
    for group in channels.free:
        each = found[group.name]
        values[group.name] = in_order(np.append(each.errors[1:], np.inf), each.ids, group.ids)
    return Scores(values)
