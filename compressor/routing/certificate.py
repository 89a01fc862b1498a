"""The cheapest threshold that keeps a promise on fresh images: thresholds are tested in a fixed order."""

import torch
from torch import Tensor

from compressor.certify import promised
from compressor.report.certificate import Certificate
from compressor.routing.costs import Costs
from compressor.routing.curve import Point, leaving, point_at, right_at
from compressor.routing.observing import Observation

# From all layers for all images to the first depth for all: even steps in the log-odds of how sure the router is, known
# before any image is looked at.
THRESHOLDS = (2.0, *torch.linspace(12, -8, 161, dtype=torch.float64).sigmoid().tolist(), 0.0)


def certified_point(
    seen: Observation,
    costs: Costs,
    before: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    drop: float,
    confidence: float,
) -> tuple[Point, Certificate]:
    """The cheapest of the router's points that loses at most `drop` with this confidence; where none does, all layers.

    Args:
        seen: what the network does with images that have chosen nothing so far.
        before: which of them the network had right as it came, bool (images,).
        labels: their classes, int64 (images,).
    """
    rows = [right_at(seen, leaving(seen, threshold)) for threshold in THRESHOLDS]
    at, certificate = promised(
        labels, before, rows, classes, drop=drop, confidence=confidence, otherwise="all layers run"
    )
    return point_at(seen, costs, THRESHOLDS[at or 0]), certificate
