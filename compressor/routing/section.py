"""Routing's part of the report: what can be skipped, labels, and every way of using the network side by side."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from compressor.profiling.latency import ImageTimes
from compressor.report import units as written
from compressor.report.sections import Curve, Plot, Section, Table
from compressor.routing.curve import UNPROMISED_DROP, Costs, Point, mean_ms
from compressor.routing.phases import Taught
from compressor.routing.settings import RouteSettings
from compressor.routing.units import Unit

_TEXT = (
    "Each image runs the network's units up to its depth only, goes around the others, and is classified there. Costs "
    "are means over the images, with the router's own multiply-adds counted. The threshold was chosen on validation "
    "images; early exit by confidence (BranchyNet's rule, one entropy for all exits) uses the same network and weights."
)
_ENOUGH_IMAGES = 200  # validation images for a threshold: where there are fewer, the user is told
_EQUAL = 0.005  # accuracies within half a point are called equal


@dataclass(frozen=True)
class Way:
    """One way of using the network, chosen on validation images and measured on the test set."""

    name: str
    point: Point


@dataclass(frozen=True)
class Findings:
    """What a run found out, as plain data for the report, the terminal and --json."""

    units: tuple[Unit, ...]
    leave_after: tuple[int, ...]
    whole_macs: int
    before_top1: float  # of the network as it came, on the test set
    ways: tuple[Way, ...]  # the router first
    curves: dict[str, list[Point]]  # kind -> points on validation images
    taught: Taught
    times: dict[str, dict[str, ImageTimes]]  # engine -> "whole" and "routed"; empty where not measured
    right: str = "top-1"  # what the share of examples that are right is called

    @property
    def routed(self) -> Point:
        """The router at its threshold, on the test set."""
        return self.ways[0].point

    def to_json(self) -> dict[str, Any]:
        taught = self.taught
        return {
            "units": [asdict(unit) for unit in self.units],
            "leave_after": list(self.leave_after),
            "ways": [{"name": way.name, **asdict(way.point)} for way in self.ways],
            "curves": {kind: [asdict(point) for point in points] for kind, points in self.curves.items()},
            "labels": list(taught.labels.counts),
            "router_top1": taught.router_top1,
            "router_majority": taught.router_majority,
            "labelled_top1": taught.labelled_top1,
            "image_times_ms": {
                engine: {name: asdict(times) for name, times in both.items()} for engine, both in self.times.items()
            },
        }


def remarks(found: Findings) -> list[str]:
    """What routing is worth here, in words; first of all where it is worth nothing."""
    routed, said = found.routed, list[str]()
    if max(routed.shares) == 1:
        said.append(f"The router sends every image to depth {routed.shares.index(1)}: it decides nothing.")
    if routed.macs >= found.whole_macs:
        said.append(
            f"This is no reduction: an image takes {written.macs(routed.macs)} on average, the whole network "
            f"{written.macs(found.whole_macs)}."
        )
    else:
        saved = 1 - routed.macs / found.whole_macs
        lost = written.points(found.before_top1, routed.top1)
        said.append(f"Routing saves {written.percent(saved)} of the MACs at {lost} of test {found.right}.")
    for engine, both in found.times.items():
        if both["routed"].mean >= both["whole"].mean:
            said.append(
                f"It is not faster on {engine}: {written.milliseconds(both['routed'].mean)} an image on average, the "
                f"whole network {written.milliseconds(both['whole'].mean)}; deciding costs more here than it saves."
            )
    fixed = [way for way in found.ways if way.point.kind == "fixed"][:-1]
    better = [way for way in fixed if way.point.macs <= routed.macs and way.point.top1 >= routed.top1]
    if better:
        best = max(better, key=lambda way: (way.point.top1, -way.point.macs))
        said.append(
            f"It does not beat a shallower network: {best.name} takes {written.macs(best.point.macs)} and gets "
            f"{written.percent(best.point.top1)} right, the router {written.macs(routed.macs)} and "
            f"{written.percent(routed.top1)}."
        )
    for way in found.ways:
        if way.point.kind == "early exit" and way.point.top1 > routed.top1 + _EQUAL:
            said.append(f"Early exit by confidence is better at this cost: {written.percent(way.point.top1)} right.")
    labels = found.taught
    if labels.router_top1 is not None and labels.router_majority is not None:
        compared = written.percent(labels.router_majority)
        said.append(
            f"The router names {written.percent(labels.router_top1)} of held-out labels; the commonest label alone "
            f"would be right for {compared}."
        )
    return said


def doubts(images: int, settings: RouteSettings) -> list[str]:
    """What makes a threshold unsure: few validation images, above all where a single one is more than may be lost."""
    if settings.threshold is not None:
        return []
    targets = (settings.target_macs, settings.target_ms)
    needed = math.ceil(1 / UNPROMISED_DROP) if targets == (None, None) else 0
    if images >= max(needed, _ENOUGH_IMAGES):
        return []
    what = f"one is {1 / images:.2%} of them" if images < needed else "their accuracy is a rough guide"
    return [
        f"The threshold was chosen on {images} validation images only, {what}: on others the router may do worse or "
        "cost more. More data, or a larger --validation share, makes it surer."
    ]


def in_time(found: Findings, depth_ms: Sequence[float]) -> Iterator[str]:
    """A line on how the budget in milliseconds was met; nothing without a budget."""
    if not depth_ms:
        return
    each = ", ".join(f"depth {depth} {ms:.3g} ms" for depth, ms in enumerate(depth_ms))
    yield (
        f"On ONNX Runtime, {torch.get_num_threads()} threads, one image takes {each}; at the chosen threshold "
        f"{mean_ms(found.routed, depth_ms):.3g} ms in the mean of the test images."
    )


def section(found: Findings, said: Sequence[str]) -> Section:
    """The section of a run's page."""
    tables = [_ways(found), _depths(found), _units(found.units, found.leave_after)]
    if found.times:
        tables.insert(1, _times(found))
    return Section("Layer-skip routing", " ".join((_TEXT, *said)), tables=tuple(tables), plots=(_curves(found),))


def planned_section(units: Sequence[Unit], leave_after: Sequence[int], counted: Costs) -> Section:
    """What a dry run shows: where images may leave, and what an image costs that does."""
    rows: list[tuple[str | float | None, ...]] = []
    for depth, (unit, cost) in enumerate(zip(leave_after, counted.routed)):
        rows.append((depth, units[unit].name, written.macs(cost), written.ratio(counted.whole, cost)))
    return Section(
        "Layer-skip routing", tables=(Table(("depth", "behind", "an image costs", "of the whole"), tuple(rows)),)
    )


def _ways(found: Findings) -> Table:
    rows: list[tuple[str | float | None, ...]] = []
    for way in found.ways:
        share = written.percent(way.point.macs / found.whole_macs)
        rows.append((way.name, written.macs(way.point.macs), share, written.percent(way.point.top1)))
    return Table(("way", "mean MACs", "of the whole", f"test {found.right}"), tuple(rows), "Ways of using the network.")


def _depths(found: Findings) -> Table:
    rows: list[tuple[str | float | None, ...]] = []
    for depth, unit in enumerate(found.leave_after):
        share = written.percent(found.routed.shares[depth])
        rows.append((depth, found.units[unit].name, found.taught.labels.counts[depth], share))
    caption = "Labels of the images that taught the router, and where test images leave."
    return Table(("depth", "behind", "images labelled", "test images"), tuple(rows), caption)


def _units(units: Sequence[Unit], leave_after: Sequence[int]) -> Table:
    rows: list[tuple[str | float | None, ...]] = []
    for unit in units:
        out = "yes" if unit.index in leave_after else ""
        rows.append((unit.index, unit.name, unit.kind, written.macs(unit.macs), unit.instead, out))
    columns = ("unit", "module", "kind", "MACs", "skipped through", "a way out")
    return Table(columns, tuple(rows), "What can be skipped.")


def _times(found: Findings) -> Table:
    rows: list[tuple[str | float | None, ...]] = []
    for engine, both in found.times.items():
        for name, times in both.items():
            cells = (written.milliseconds(times.mean), written.milliseconds(times.p95))
            rows.append((engine, name, *cells, written.ratio(both["whole"].mean, times.mean)))
    caption = "One image at a time, the same test images in turn for each."
    return Table(("engine", "network", "mean", "p95", "of the whole"), tuple(rows), caption)


def _curves(found: Findings) -> Plot:
    curves = [
        Curve(kind, tuple(point.macs / 1e6 for point in points), tuple(100 * point.top1 for point in points))
        for kind, points in found.curves.items()
    ]
    title, share = "Accuracy against mean cost, validation images", f"{found.right}, %"
    return Plot(title, "million MACs", share, tuple(curves), "points")
