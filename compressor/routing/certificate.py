"""The cheapest threshold that keeps a promise on fresh images: thresholds are tested in a fixed order."""

import torch
from torch import Tensor, nn

from compressor.certify import Paired, bound, certified, images_needed, worst_class
from compressor.graph.tensors import device_of
from compressor.report.certificate import Certificate
from compressor.routing.costs import Costs
from compressor.routing.curve import Point, leaving, point_at, right_at
from compressor.routing.observing import Observation
from compressor.training.data import AnySet, Data
from compressor.training.evaluate import evaluating, first_output

# From all layers for all images to the first depth for all: even steps in the log-odds of how sure the router is, known
# before any image is looked at.
THRESHOLDS = (2.0, *torch.linspace(12, -8, 161, dtype=torch.float64).sigmoid().tolist(), 0.0)


def certified_point(
    seen: Observation,
    costs: Costs,
    before: Tensor,
    classes: tuple[str, ...],
    *,
    drop: float,
    confidence: float,
) -> tuple[Point, Certificate]:
    """The cheapest of the router's points that loses at most `drop` with this confidence; where none does, all layers.

    Args:
        seen: what the network does with images that have chosen nothing so far.
        before: which of them the network had right as it came, bool (images,).
    """
    rows = [right_at(seen, leaving(seen, threshold)) for threshold in THRESHOLDS]
    pairs = [Paired.of(before, right) for right in rows]
    count = certified(pairs, drop, confidence)
    at = max(count - 1, 0)
    lost = max(pairs[at].drop, 0.0)
    number, worst, images = worst_class(seen.classes, before, rows[at])
    certificate = Certificate(
        drop=bound(pairs[at], confidence) if count else 1.0,
        confidence=confidence,
        images=len(seen),
        observed=pairs[at].drop,
        kept=count > 0,
        asked=drop,
        would_do=images_needed(drop, confidence, lost) if not count and lost < drop else None,
        worst_class=classes[number],
        worst_drop=worst,
        worst_images=images,
        agreement=float((before == rows[at]).double().mean()),
    )
    return point_at(seen, costs, THRESHOLDS[at]), certificate


def right_of(module: nn.Module, image_set: AnySet, data: Data) -> Tensor:
    """Which images of a set a network has right, bool (images,), on the CPU and in the set's order."""
    found = []
    with evaluating(module), torch.no_grad():
        for x, y in data.passing(image_set, device=device_of(module)):
            found.append((first_output(module(x)).argmax(1) == y).cpu())
    return torch.cat(found)
