"""The skipping network: per image it runs the units up to one depth, goes around the others, and ends in the head.

Reference: CNN 3 of the paper. A batch is worked through progressively: each unit runs on those images alone that need
it, and the scores are put back in the images' order.

It is made around a user's network, from settings or again from a checkpoint's step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, misfit
from compressor.files.plain import from_plain, plain
from compressor.graph.cuts import Chain
from compressor.graph.tensors import device_of
from compressor.report import units as written
from compressor.routing.router import Gates, ImageRouter, Router
from compressor.routing.settings import RouteSettings
from compressor.routing.units import ExitHead, Skippable, Unit, Units, find_units, head_side


@dataclass(frozen=True)
class Layout:
    """What a skipping network is built of; plain data, kept in checkpoints."""

    input_shape: tuple[int, ...]  # (channels, height, width)
    classes: int
    leave_after: tuple[int, ...]  # unit index for each depth, the last unit last
    heads: str = "shared"  # "shared": the network's own head for all depths; "own": a small one for each depth
    grids: tuple[int, ...] = ()  # own heads: about how many means in height and width each depth but the last sees
    router: str = "gates"  # "gates", "image" or "argmax" (the image router as in the paper)


class Routed(nn.Module):
    """A network cut into segments, with a way out after each and a router that chooses one for every image.

    `forward` gives scores (batch, classes) and runs on any batch; it exports as it is, with the images that go on
    gathered and scattered. `segment(d)` and `leave(d)` are its pieces: depth d is left through
    `leave(d, segment(d, ... segment(0, x)))`.
    """

    thresholds: Tensor

    def __init__(self, chain: Chain, units: tuple[Unit, ...], layout: Layout) -> None:
        """Shares the parameters of the chain's network, except those of its exits and router."""
        super().__init__()
        self.layout = layout
        self.unit_names = tuple(unit.name for unit in units)
        parts: list[nn.Module] = []
        ends: list[int] = []
        done = 0
        for unit in units:
            if unit.start > done:
                parts.append(chain.segment(done, unit.start))
            body = chain.segment(unit.start, unit.end)
            parts.append(Skippable(body, unit.input_shape, unit.output_shape))
            done = unit.end
            if unit.index in layout.leave_after:
                ends.append(len(parts))
        parts.append(chain.segment(done, len(chain.cuts) - 1))
        self.parts = nn.ModuleList(parts)
        self._ends = tuple(ends)
        shapes = [units[index].output_shape for index in layout.leave_after]
        grids = zip(shapes, layout.grids) if layout.heads == "own" else ()
        self.heads = nn.ModuleList(ExitHead(shape, layout.classes, grid) for shape, grid in grids)
        self.router: Router
        if layout.router == "gates":
            self.router = Gates([shape[0] for shape in shapes[:-1]], layout.classes)
        else:
            self.router = ImageRouter(layout.input_shape, self.depths, argmax=layout.router == "argmax")
        self.register_buffer("thresholds", torch.full((self.depths - 1,), 0.0 if layout.router == "argmax" else 0.5))

    @property
    def depths(self) -> int:
        """How many depths there are; the last one runs the whole network."""
        return len(self._ends)

    def set_threshold_(self, threshold: float | list[float]) -> None:
        """An image leaves at the first depth that suffices with at least this probability: 0 for none but the cheapest
        depth, above 1 for the whole network always. A list has one for each depth but the last.
        """
        self.thresholds.copy_(torch.as_tensor(threshold).expand_as(self.thresholds))

    def segment(self, depth: int, x: Tensor) -> Tensor:
        """From the maps after depth - 1 (or the images) to the maps after this depth."""
        for index in range(self._ends[depth - 1] if depth else 0, self._ends[depth]):
            x = self.parts[index](x)
        return x

    def leave(self, depth: int, maps: Tensor) -> Tensor:
        """From the maps after a depth to scores (batch, classes), going around all units behind it."""
        if depth < len(self.heads):
            y: Tensor = self.heads[depth](maps)
            return y
        for index in range(self._ends[depth], len(self.parts)):
            part = self.parts[index]
            maps = part.skip(maps) if isinstance(part, Skippable) else part(maps)
        return maps

    def all_scores(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores and maps of every depth."""
        scores, maps = [], []
        for depth in range(self.depths):
            x = self.segment(depth, x)
            maps.append(x)
            scores.append(self.leave(depth, x))
        return scores, maps

    def scores_at(self, x: Tensor, labels: Tensor) -> Tensor:
        """Scores of a batch whose images leave at given depths, int64 `(batch,)`; for training the skipping network.

        A segment's batch norm sees exactly the images that need it; where one image alone is left in training, the
        running statistics are used.
        """
        places = torch.arange(len(x), device=x.device)
        pieces, order = [], []
        for depth in range(self.depths):
            alone = self.training and len(x) == 1
            if alone:
                self._norms(training=False)
            x = self.segment(depth, x)
            leaving = labels <= depth
            if bool(leaving.any()):
                pieces.append(self.leave(depth, x[leaving]))
                order.append(places[leaving])
            if alone:
                self._norms(training=True)
            x, labels, places = x[~leaving], labels[~leaving], places[~leaving]
            if not len(x):
                break
        return torch.cat(pieces)[torch.cat(order).argsort()]

    def _norms(self, training: bool) -> None:
        for part in self.parts:
            part.train(training)

    def forward(self, x: Tensor) -> Tensor:
        """Images to scores (batch, classes), each at the depth that the router chooses."""
        return self.route(x)[0]

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (batch, classes), and the depth that each image left at, int64 (batch,)."""
        plan = self.router.suffices(x) if isinstance(self.router, ImageRouter) else None
        return self._from(0, x, plan)

    def _from(self, depth: int, x: Tensor, plan: Tensor | None) -> tuple[Tensor, Tensor]:
        maps = self.segment(depth, x)
        if depth == self.depths - 1:
            return self.leave(depth, maps), _depth_ids(maps, depth)
        scores = None
        if isinstance(self.router, Gates):
            scores = self.leave(depth, maps)
            sure = self.router.suffices(depth, maps, scores)
        else:
            assert plan is not None
            sure = plan[:, depth]
        leaves = sure >= self.thresholds[depth]
        if not torch.compiler.is_exporting():  # the exported graph holds all cases
            leaving = int(leaves.count_nonzero())
            if leaving == len(maps):
                return self.leave(depth, maps) if scores is None else scores, _depth_ids(maps, depth)
            if leaving == 0:  # nothing to gather and scatter
                return self._from(depth + 1, maps, plan)
        going = _where(~leaves)
        deeper, ids = self._from(depth + 1, _chosen(maps, going), None if plan is None else _chosen(plan, going))
        here = _depth_ids(maps, depth).index_copy(0, going, ids)
        if scores is None:
            staying = _where(leaves)
            left = self.leave(depth, _chosen(maps, staying))
            scores = left.new_zeros(maps.shape[0], left.shape[1]).index_copy(0, staying, left)
        return scores.index_copy(0, going, deeper), here

    def step(self) -> dict[str, object]:
        """What a checkpoint has to know to build this network around a new build of the user's (see `rebuild`)."""
        return {"kind": "route", **plain(self.layout), "units": list(self.unit_names)}


class Piece(nn.Module):
    """A part of the network as a module in evaluation mode, to be traced or exported."""

    def __init__(self, routed: Routed, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.routed, self.call = routed, call
        self.training = False

    def forward(self, x: Tensor) -> Any:
        return self.call(self.routed, x)


def check_layout(layout: Layout, units: tuple[Unit, ...]) -> None:
    """Raise UsageError for depths that the network does not have, ValueError for words that mean nothing."""
    depths = layout.leave_after
    if len(depths) < 2 or list(depths) != sorted(set(depths)) or depths[-1] != len(units) - 1 or depths[0] < 0:
        raise UsageError(
            f"images cannot leave after units {', '.join(map(str, depths))}: give two or more, in ascending order, "
            f"from 0 to {len(units) - 1}, which is the last"
        )
    if layout.heads not in ("own", "shared") or layout.router not in ("gates", "image", "argmax"):
        raise ValueError(f"heads {layout.heads!r}, router {layout.router!r}")
    if layout.heads == "own" and (len(layout.grids) != len(depths) - 1 or min(layout.grids) < 1):
        raise ValueError(f"grids {layout.grids} for {len(depths)} depths")


def _depth_ids(maps: Tensor, depth: int) -> Tensor:
    return torch.full((maps.shape[0],), depth, dtype=torch.int64, device=maps.device)


def _where(mask: Tensor) -> Tensor:
    places = mask.nonzero().squeeze(1)
    if torch.compiler.is_exporting():
        # The exporter must not ask whether there are none; at run time an empty batch is fine.
        torch._check(places.shape[0] > 0)
    return places


def _chosen(values: Tensor, places: Tensor) -> Tensor:
    return values.index_select(0, places)


_HEAD_SHARE = 0.02  # of the network's MACs that an exit head may take, where it has a choice


def survey(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[Chain, Units]:
    """The network as a chain, and what of it can be skipped.

    Raises ModelError where it cannot be cut or nothing can be skipped.
    """
    chain = Chain(module, torch.zeros(1, *input_shape, device=device_of(module)))
    return chain, find_units(chain)


def make_routed(chain: Chain, units: tuple[Unit, ...], settings: RouteSettings) -> Routed:
    """A skipping network that shares the chain's parameters; its exits and router are still to be trained.

    Raises ModelError for places to leave that the network does not have, or images too small for the router.
    """
    if len(chain.cuts[-1].shape) != 1:
        raise ModelError(
            f"the network gives {written.shape(chain.cuts[-1].shape)} for an image: its early exits have to give "
            "scores (batch, classes)"
        )
    classes, leave_after = chain.cuts[-1].shape[0], settings.leave_after or spread(units, settings.depths)
    most = int(_HEAD_SHARE * sum(unit.macs for unit in units))
    passed = [units[index].output_shape for index in leave_after[:-1] if index < len(units)]
    layout = Layout(
        input_shape=chain.cuts[0].shape,
        classes=classes,
        leave_after=leave_after,
        heads=settings.heads,
        grids=tuple(head_side(shape, classes, most) for shape in passed),
        router=settings.router,
    )
    return _built(chain, units, layout)


def spread(units: tuple[Unit, ...], depths: int) -> tuple[int, ...]:
    """Unit numbers for about so many depths, spread evenly over the MACs; the last unit is always among them."""
    if len(units) <= depths:
        return tuple(range(len(units)))
    total, done, reached = sum(unit.macs for unit in units), 0, []
    for unit in units:
        done += unit.macs
        reached.append(done / total)
    shares = [(place + 1) / depths for place in range(depths - 1)]
    nearest = {min(range(len(units) - 1), key=lambda i: abs(reached[i] - share)) for share in shares}
    return (*sorted(nearest), len(units) - 1)


def rebuild(module: nn.Module, step: Mapping[str, Any]) -> Routed:
    """The skipping network that `Routed.step()` described, around `module`: a new build of the user's network.

    The weights of its exits and router are random until they are loaded. Raises FileError for a step that
    is damaged or does not fit the module.
    """
    with misfit("router does"):
        layout = from_plain(Layout, {each.name: step[each.name] for each in fields(Layout)})
        chain, found = survey(module, layout.input_shape)
        names = [unit.name for unit in found.units]
        if names != list(step["units"]):
            raise ModelError(f"its units are {', '.join(names[:5])} ... here, {len(names)} of them")
        return _built(chain, found.units, layout)


def _built(chain: Chain, units: tuple[Unit, ...], layout: Layout) -> Routed:
    check_layout(layout, units)
    return Routed(chain, units, layout).to(device_of(chain.program))
