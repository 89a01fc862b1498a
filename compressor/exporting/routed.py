"""Routed networks as graphs: every image decides for itself, and only those that go on are computed further.

After each depth the images that go on are gathered, the rest of the network runs on them inside a branch (which is not
entered when there are none), and their scores are put back in their places.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError
from compressor.exporting.compose import Body, Stage, StageMaker, outputs_of
from compressor.exporting.engines import Run
from compressor.exporting.forms import THRESHOLDS, forced
from compressor.exporting.latency import file_latency
from compressor.exporting.onnx import export_onnx
from compressor.exporting.samples import RELATIVE_LIMIT, largest_difference
from compressor.report.manifest import Array
from compressor.routing.network import Piece, Routed
from compressor.routing.router import Gates, ImageRouter

_EDGE = 1e-5  # how near a threshold rounding may decide


@dataclass(frozen=True, eq=False)
class Parts:
    """A routed network's parts as flat graphs."""

    segments: tuple[Stage, ...]
    leaves: tuple[Stage, ...]  # scores, and with gates how sure
    plan: Stage | None  # of an image router
    classes: int


def modules_of(routed: Routed, images: Tensor) -> Iterator[tuple[str, nn.Module, Tensor, list[str]]]:
    """The parts by name, each with the maps that all images have there, and its outputs.

    `segment_K` and `leave_K` of each depth, and `plan` of an image router.
    """
    maps, router = images, routed.router
    if isinstance(router, ImageRouter):
        yield "plan", Piece(routed, lambda net, x: net.router.suffices(x)), images, ["sure"]
    for depth in range(routed.depths):
        segment = Piece(routed, lambda net, x, d=depth: net.segment(d, x))  # type: ignore[misc]
        yield f"segment_{depth}", segment, maps, ["y"]
        maps = outputs_of(segment, [(maps,)])[0]
        gated = isinstance(router, Gates) and depth < routed.depths - 1
        leave = _sure if gated else Routed.leave
        yield (
            f"leave_{depth}",
            Piece(routed, lambda net, x, d=depth, go=leave: go(net, d, x)),  # type: ignore[misc]
            maps,
            ["scores", "sure"] if gated else ["scores"],
        )


def _sure(routed: Routed, depth: int, maps: Tensor) -> tuple[Tensor, Tensor]:
    """From maps to scores, and how sure the gate is that looks at them."""
    scores, router = routed.leave(depth, maps), routed.router
    assert isinstance(router, Gates)
    return scores, router.suffices(depth, maps, scores)


def parts_of(routed: Routed, images: Tensor, maker: StageMaker) -> Parts:
    """Export the parts."""
    made = {
        name: maker.make(part, [(maps,)], ["x"], outputs) for name, part, maps, outputs in modules_of(routed, images)
    }
    segments, leaves = (
        tuple(made[f"{kind}_{depth}"] for depth in range(routed.depths)) for kind in ("segment", "leave")
    )
    return Parts(segments, leaves, made.get("plan"), routed.layout.classes)


def routed_graph(parts: Parts) -> Any:
    """The network with its router, whose thresholds are an input."""
    import onnx_ir as ir

    body, like = Body(), parts.leaves[-1].output
    image = body.input("input", parts.segments[0].image)
    floats = ir.TensorType(ir.DataType.FLOAT)
    given = body.input(THRESHOLDS, ir.Value(type=floats, shape=ir.Shape([len(parts.segments) - 1])))
    plan = None if parts.plan is None else body.call(parts.plan, image)[0]
    scores, ids = _Builder(parts, given).go_on(body, 0, image, plan)
    return body.model({"logits": (scores, like), "exit": (ids, _exit_like(like))})


def depth_graph(parts: Parts, depth: int) -> Any:
    """The network when all images leave at one depth, without a router."""
    body, like = Body(), parts.leaves[depth].output
    flow = image = body.input("input", parts.segments[0].image)
    for segment in parts.segments[: depth + 1]:
        flow = body.call(segment, flow)[0]
    scores = body.call(parts.leaves[depth].first_output(), flow)[0]
    return body.model({"logits": (scores, like), "exit": (_filled(body, image, depth), _exit_like(like))})


def _exit_like(scores: Any) -> Any:
    """The description of one whole number for each image."""
    import onnx_ir as ir

    return ir.Value(type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(scores.shape[:1]))


@dataclass(frozen=True)
class _Builder:
    """What builds the graph depth by depth, each inside the branch of the one before."""

    parts: Parts
    thresholds: Any

    def go_on(self, body: Body, depth: int, maps: Any, plan: Any) -> tuple[Any, Any]:
        """Scores, and the depths at which images leave, from a depth on."""
        maps = body.call(self.parts.segments[depth], maps)[0]
        if depth == len(self.parts.segments) - 1:
            return body.call(self.parts.leaves[depth], maps)[0], _filled(body, maps, depth)
        place = body.constant(np.asarray(depth, np.int64))
        threshold = body.run("Gather", self.thresholds, place, axis=0)
        scores = None
        if plan is None:
            scores, sure = body.call(self.parts.leaves[depth], maps)
        else:
            sure = body.run("Gather", plan, place, axis=1)
        leaves = body.run("GreaterOrEqual", sure, threshold)
        if scores is None:
            scores = self._staying(body, depth, maps, leaves)
        here = _filled(body, maps, depth)
        return self._going(body, depth, (maps, plan), (scores, here), leaves)

    def _staying(self, body: Body, depth: int, maps: Any, leaves: Any) -> Any:
        """Scores of those that leave here, zero for the others."""
        places, some = _places(body, leaves)
        batch = body.run("Shape", maps, end=1)
        shape = body.run("Concat", batch, body.constant(np.asarray([self.parts.classes])), axis=0)
        zeros = body.run("Expand", body.constant(np.zeros((1, 1), np.float32)), shape)
        then, otherwise = body.inner(), body.inner()
        left = then.call(self.parts.leaves[depth], then.run("Gather", maps, places, axis=0))[0]
        return body.choose(some, (then, [_put(then, zeros, places, left)]), (otherwise, [zeros]))[0]

    def _going(
        self, body: Body, depth: int, flow: tuple[Any, Any], held: tuple[Any, Any], leaves: Any
    ) -> tuple[Any, Any]:
        """The scores and depths with those put in their places that go deeper."""
        places, some = _places(body, body.run("Not", leaves))
        then, otherwise = body.inner(), body.inner()
        maps, plan = (None if each is None else then.run("Gather", each, places, axis=0) for each in flow)
        deeper = self.go_on(then, depth + 1, maps, plan)
        placed = [_put(then, whole, places, part) for whole, part in zip(held, deeper)]
        scores, ids = body.choose(some, (then, placed), (otherwise, list(held)))
        return scores, ids


def _places(body: Body, mask: Any) -> tuple[Any, Any]:
    """Where a mask is true, int64 (count,), and whether it is anywhere."""
    places = body.run("Squeeze", body.run("NonZero", mask), body.constant(np.asarray([0])))
    return places, body.run("Greater", body.run("Size", places), body.constant(0))


def _put(body: Body, whole: Any, places: Any, part: Any) -> Any:
    """Rows put in the places they came from."""
    return body.run("ScatterND", whole, body.run("Unsqueeze", places, body.constant(np.asarray([1]))), part)


def _filled(body: Body, maps: Any, depth: int) -> Any:
    """The depth, once for each image."""
    return body.run("Expand", body.constant(np.asarray([depth])), body.run("Shape", maps, end=1))


@torch.no_grad()
def mixtures(routed: Routed, images: Tensor) -> list[Array]:
    """Thresholds to try: the calibrated ones, and those at which about half of the images go on at every depth."""
    if isinstance(routed.router, ImageRouter):
        sure = list(routed.router.suffices(images).unbind(1))
    else:
        scores, maps = routed.all_scores(images)
        sure = [routed.router.suffices(d, maps[d], scores[d]) for d in range(routed.depths - 1)]
    halves = torch.stack([each.median() for each in sure])
    return [routed.thresholds.numpy().copy(), halves.float().numpy()]


@torch.no_grad()
def check_mixture(routed: Routed, run: Run, images: Tensor) -> float:
    """The largest relative difference from torch when every image decides for itself; `run` runs the exported network.

    Images so near a threshold that rounding decides are left out.

    Raises:
        CompressorError: an image leaves at another depth than in torch, or with other scores.
    """
    kept, worst = routed.thresholds.clone(), 0.0
    for thresholds in mixtures(routed, images):
        found: list[Tensor] = []
        for shift in (-_EDGE, 0.0, _EDGE):
            routed.set_threshold_((thresholds + np.float32(shift)).tolist())
            scores, ids = routed.route(images)
            found += [scores, ids]
        routed.set_threshold_(kept.tolist())
        clear = (found[1] == found[5]).numpy()
        got = run({"input": images.numpy(), THRESHOLDS: thresholds})
        if not np.array_equal(got[1][clear], found[3].numpy()[clear]):
            raise CompressorError("images leave the exported graph at other depths than in torch; nothing was written")
        _, relative = largest_difference([found[2].numpy()[clear]], [got[0][clear]])
        worst = max(worst, relative)
    if not worst <= RELATIVE_LIMIT:
        raise CompressorError(
            f"routed, the exported graph differs from torch by {worst:.1e} of the largest output; nothing was written"
        )
    return worst


def depth_times(routed: Routed, example: Tensor) -> tuple[float, ...]:
    """Median milliseconds of one image on ONNX Runtime in the whole network, at thresholds that make it leave there.

    So what sends images on and puts their scores together again is included. Weights do not matter.

    Raises CompressorError where the network cannot be exported.
    """
    found, before = [], routed.thresholds.clone()
    try:
        with TemporaryDirectory() as folder:
            for depth in range(routed.depths):
                file = Path(folder) / f"depth_{depth}.onnx"
                routed.set_threshold_(forced(routed.depths, depth).tolist())
                export_onnx(routed, example, file)
                found.append(float(file_latency(file)["median"]))
    finally:
        routed.thresholds.copy_(before)
    return tuple(found)
