"""Accuracy against mean multiply-adds: the router over its thresholds, fixed depths, and early exit by confidence.

Everything is computed from one observation of a set, so all points stand on the same images and weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from compressor.certify import promised
from compressor.errors import UsageError
from compressor.graph.trace import trace
from compressor.profiling.costs import macs_of
from compressor.report.measurements import Certificate
from compressor.routing.network import Piece, Routed
from compressor.routing.observing import Observation
from compressor.routing.router import Gates, ImageRouter


@dataclass(frozen=True)
class Costs:
    """Multiply-adds for one image; lists have an entry for each depth."""

    whole: int  # the network as it came
    fixed: tuple[int, ...]  # the network left at this depth always, without a router
    routed: tuple[int, ...]  # an image that the router lets leave at this depth
    early_exit: tuple[int, ...]  # one that leaves by the confidence of the scores, computed at every depth on its way
    router: int  # the image router, or all gates together


def costs(routed: Routed) -> Costs:
    """Count every piece once on shapes alone, and add the pieces up along each path."""
    shape: tuple[int, ...] = tuple(routed.layout.input_shape)
    segments, leaving, gates = [], [], []
    for depth in range(routed.depths):
        segments.append(_macs(routed, lambda net, x, d=depth: net.segment(d, x), shape))  # type: ignore[misc]
        shape = _shape_after(routed, depth, shape)
        leaving.append(_macs(routed, lambda net, x, d=depth: net.leave(d, x), shape))  # type: ignore[misc]
        if isinstance(routed.router, Gates) and depth < routed.depths - 1:
            features = routed.router.features[depth]
            gates.append(_macs(routed, lambda net, x, d=depth: net.router(d, x), (features,)))  # type: ignore[misc]
    first = 0
    if isinstance(routed.router, ImageRouter):
        first = _macs(routed, lambda net, x: net.router(x), routed.layout.input_shape)
    reached = list(accumulate(segments))
    fixed = tuple(work + out for work, out in zip(reached, leaving))
    passed = list(accumulate(leaving))
    early = tuple(work + out for work, out in zip(reached, passed))
    asked = [sum(gates[: depth + 1]) for depth in range(routed.depths)]
    by_router = early if gates else fixed
    paths = tuple(first + path + asking for path, asking in zip(by_router, asked))
    return Costs(fixed[-1], fixed, paths, early, first + sum(gates))


def _macs(routed: Routed, call: Callable[[Routed, Tensor], Tensor], shape: tuple[int, ...]) -> int:
    return macs_of(Piece(routed, call), shape)


def _shape_after(routed: Routed, depth: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found = trace(Piece(routed, lambda net, x: net.segment(depth, x)), torch.zeros(1, *shape)).outputs[0].shape
    return tuple(found[1:])


_CANDIDATES = 200  # thresholds that are looked at
UNPROMISED_DROP = 0.002  # of top-1 on validation images, where nobody says what may be lost


@dataclass(frozen=True)
class Point:
    """One way of using the network."""

    kind: str  # "router", "fixed" or "early exit"
    setting: float  # the router's threshold, the depth, or the largest entropy in nats
    macs: float  # mean multiply-adds for one image, everything counted
    top1: float  # fraction in 0..1
    shares: tuple[float, ...]  # of the images that leave at each depth


def point_at(seen: Observation, costs: Costs, threshold: float | Sequence[float]) -> Point:
    """The router at a threshold, or at one for each depth but the last."""
    limit = torch.as_tensor(threshold, dtype=torch.float32)
    return _point("router", float(limit.flatten()[0]), leaving(seen, limit), seen, costs.routed)


def leaving(seen: Observation, threshold: float | Tensor) -> Tensor:
    """The depth at which the router lets each image leave, int64 (images,)."""
    return _first(seen.suffices >= torch.as_tensor(threshold, dtype=torch.float32))


def right_at(seen: Observation, depths: Tensor) -> Tensor:
    """Which images are right where they leave, bool (images,)."""
    return seen.right.gather(1, depths[:, None])[:, 0]


def routed_points(seen: Observation, costs: Costs) -> list[Point]:
    """The router over all thresholds that matter, from cheap to dear."""
    return _sweep(seen.suffices, lambda threshold: point_at(seen, costs, threshold))


def early_exit_points(seen: Observation, costs: Costs) -> list[Point]:
    """`early_exit_at` over all thresholds that matter, from cheap to dear."""
    return _sweep(seen.entropy[:, :-1], lambda limit: early_exit_at(seen, costs, limit))


def early_exit_at(seen: Observation, costs: Costs, limit: float) -> Point:
    """An image leaves at the first depth whose class probabilities have an entropy (nats) of at most `limit`.

    Reference: Teerapittayanon, McDanel and Kung, "BranchyNet: Fast Inference via Early Exiting from Deep Neural
    Networks", section III-D; one threshold for all exits.
    """
    return _point("early exit", limit, _first(seen.entropy[:, :-1] <= limit), seen, costs.early_exit)


def fixed_points(seen: Observation, costs: Costs) -> list[Point]:
    """Every image at the same depth; the last one is the whole network."""
    last = len(costs.fixed)
    depths = [torch.full((len(seen),), depth) for depth in range(last)]
    return [_point("fixed", float(depth), depths[depth], seen, costs.fixed) for depth in range(last)]


def thinned(points: list[Point], wanted: int = 20) -> list[Point]:
    """About `wanted` of many points, evenly spread over their costs, the ends included."""
    if len(points) <= wanted:
        return points
    low, high = points[0].macs, points[-1].macs
    grid = [low + (high - low) * step / (wanted - 1) for step in range(wanted)]
    chosen = {min(range(len(points)), key=lambda i: abs(points[i].macs - macs)) for macs in grid}
    return [points[i] for i in sorted(chosen)]


def cheapest(points: list[Point], top1: float) -> Point | None:
    """The cheapest point with at least this accuracy."""
    return min((point for point in points if point.top1 >= top1), key=lambda point: point.macs, default=None)


def choose(points: list[Point], costs: Costs, *, target_macs: float | None, max_drop: float = UNPROMISED_DROP) -> Point:
    """The router's point to use: within a target the most accurate one, else the cheapest one that loses little.

    `points` are the router's on validation images. `target_macs` is a share of the whole network's up to 1, a number of
    MACs above. `max_drop` is the accuracy, as a fraction, that may be lost against the most accurate point: of these
    images, which promises nothing of others.

    Raises UsageError when no threshold meets the target; the message names the nearest.
    """
    if target_macs is not None:
        limit = within(target_macs, min(point.macs for point in points), costs.whole)
        return max((point for point in points if point.macs <= limit), key=lambda point: (point.top1, -point.macs))
    best = max(point.top1 for point in points)
    found = cheapest(points, best - max_drop)
    assert found is not None
    return found


def choose_in_time(points: list[Point], depth_ms: Sequence[float], target_ms: float) -> Point:
    """The most accurate of the router's points at which an image takes at most so long in the mean.

    `depth_ms` is what an image takes that leaves at each depth, in milliseconds, the router included.

    Raises UsageError where the cheapest takes longer.
    """
    check_time(depth_ms, target_ms)
    able = [point for point in points if mean_ms(point, depth_ms) <= target_ms]
    if not able:  # no threshold sends all images out at the first depth
        raise UsageError(
            f"no threshold gives {target_ms:g} ms: the fastest takes "
            f"{min(mean_ms(point, depth_ms) for point in points):.3g} ms; give a larger `target_ms`"
        )
    return max(able, key=lambda point: (point.top1, -point.macs))


def mean_ms(point: Point, depth_ms: Sequence[float]) -> float:
    """What an image takes in the mean, in milliseconds."""
    return sum(share * each for share, each in zip(point.shares, depth_ms, strict=True))


def check_time(depth_ms: Sequence[float], target_ms: float) -> None:
    """Raise UsageError where no depth is fast enough."""
    if min(depth_ms) > target_ms:
        raise UsageError(
            f"no route takes {target_ms:g} ms or less: the fastest takes {min(depth_ms):.3g} ms here, the whole "
            f"network {depth_ms[-1]:.3g} ms; give a larger `target_ms`"
        )


def within(target_macs: float, least: float, whole: int) -> float:
    """A target, up to 1 a share of the whole network's MACs and above 1 a number, as a number.

    Raises UsageError where the cheapest route takes more.
    """
    limit = target_macs * whole if target_macs <= 1 else target_macs
    if limit < least:
        raise UsageError(
            f"no route costs {limit / 1e6:.3g} M MACs ({limit / whole:.1%}) or less: the cheapest takes "
            f"{least / 1e6:.3g} M ({least / whole:.1%}); give a larger `target_macs`"
        )
    return limit


def _first(leaves: Tensor) -> Tensor:
    """The first depth at which each image leaves; the last one where it never does. bool (images, depths - 1)."""
    always = torch.ones(len(leaves), 1, dtype=torch.bool)
    return torch.cat([leaves, always], 1).int().argmax(1)


def _point(kind: str, setting: float, depths: Tensor, seen: Observation, costs: Sequence[int]) -> Point:
    macs = torch.tensor(costs, dtype=torch.float64)[depths].mean()
    right = right_at(seen, depths).double().mean()
    shares = torch.bincount(depths, minlength=len(costs)).double() / len(depths)
    return Point(kind, setting, float(macs), float(right), tuple(shares.tolist()))


def _sweep(values: Tensor, point: Callable[[float], Point]) -> list[Point]:
    """The points at quantiles of the values, and just beyond both ends, without repetitions of the same cost."""
    spread = torch.quantile(values.flatten()[:: max(1, values.numel() // 1_000_000)], torch.linspace(0, 1, _CANDIDATES))
    beyond = [float(values.min()) - 1e-3, float(values.max()) + 1e-3]
    found = {each.macs: each for each in map(point, [*spread.tolist(), *beyond])}
    return [found[macs] for macs in sorted(found)]


# From all layers for all images to the first depth for all: even steps in the log-odds of how sure the router is, known
# before any image is looked at.
THRESHOLDS = (2.0, *torch.linspace(12, -8, 161, dtype=torch.float64).sigmoid().tolist(), 0.0)


def certified_point(
    seen: Observation,
    costs: Costs,
    before: Tensor,
    labels: Tensor | None,
    classes: tuple[str, ...],
    *,
    drop: float,
    confidence: float,
) -> tuple[Point, Certificate]:
    """The cheapest of the router's points that loses at most `drop` with this confidence; where none does, all layers.

    Args:
        seen: what the network does with images that have chosen nothing so far.
        before: which of them the network had right as it came, bool (images,).
        labels: their classes, int64 (images,), where they have some.
    """
    rows = [right_at(seen, leaving(seen, threshold)) for threshold in THRESHOLDS]
    at, certificate = promised(
        labels, before, rows, classes, drop=drop, confidence=confidence, otherwise="all layers run"
    )
    return point_at(seen, costs, THRESHOLDS[at or 0]), certificate
