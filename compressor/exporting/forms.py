"""What can be packaged: the exits that a model has, each as a module of its own that says what is right.

An exit is one way through the model: the whole of a compact model, a sub-model of a detachable one, a depth of a routed
one. Its module is the reference for the exported graph, and its multiply-adds and convolutions are what the graph
promises to execute and no more.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.exits.detachable import Detachable, Detaching
from compressor.exporting.samples import images
from compressor.graph.trace import trace
from compressor.profiling.costs import count_macs
from compressor.report.manifest import Array
from compressor.routing.network import Routed
from compressor.routing.router import Gates, ImageRouter

START = "start"  # the input of a detachable model's graph that says which model
THRESHOLDS = "thresholds"  # the input of a routed model's graph: how sure the router has to be, for each depth but one
_NEVER, _ALWAYS = 2.0, -2.0  # as thresholds of a probability; the strictest router says -1 for what it rules out


@dataclass(frozen=True, eq=False)
class Exit:
    """One way through a model."""

    number: int
    name: str
    module: nn.Module  # images (batch, channels, height, width) to scores (batch, classes), or several outputs
    feeds: dict[str, Array] = field(default_factory=dict)  # inputs of the graph that choose it, besides the images
    alone: nn.Module | None = None  # what its flat graph computes, where that is less: no router


@dataclass(frozen=True)
class Cost:
    """What an exit executes for one image, counted on its module."""

    macs: int
    params: int  # that it uses
    convolutions: int  # operators
    products: int  # linear layers and other products of matrices


@dataclass(frozen=True, eq=False)
class Form:
    """A model as it is packaged."""

    kind: str  # "compact", "detachable", "nested" or "routed"
    module: nn.Module
    shape: tuple[int, ...]  # of an image
    exits: tuple[Exit, ...]
    choice: dict[str, Any] | None = None  # the input that chooses among them: its name, meaning, value if none is asked
    names: tuple[str, ...] = ("input",)  # of the graph's inputs besides that
    gives: Any = 0  # how the model returns its outputs; see `Manifest.gives`

    def __post_init__(self) -> None:
        assert [each.number for each in self.exits] == list(range(len(self.exits)))


def form_of(module: nn.Module, example: object) -> Form:
    """Recognise what a model is by its class; a model of several inputs has no shape of an image."""
    shape = tuple(example.shape[1:]) if isinstance(example, Tensor) else ()
    if isinstance(module, Detaching):
        names = ("base", *module.at)
        exits = tuple(
            Exit(number, name, module.detach(number), {START: np.asarray(number, np.int64)})
            for number, name in enumerate(names)
        )
        meaning = f"int64 scalar: 0 is the base, {module.exits} the smallest sub-model"
        kind = "detachable" if isinstance(module, Detachable) else "nested"
        return Form(kind, module, shape, exits, {"input": START, "default": 0, "meaning": meaning})
    if isinstance(module, Routed):
        depths = range(module.depths)
        exits = tuple(
            Exit(depth, f"depth {depth}", AtDepth(module, depth), {THRESHOLDS: forced(module.depths, depth)},
                 AtDepth(module, depth, router=False))
            for depth in depths
        )  # fmt: skip
        meaning = (
            f"float32 ({module.depths - 1},): an image leaves at the first depth where the router is at least so sure; "
            "0 sends all out at once, 2 none"
        )
        return Form(
            "routed",
            module,
            shape,
            exits,
            {"input": THRESHOLDS, "default": module.thresholds.tolist(), "meaning": meaning},
        )
    return Form("compact", module, shape, (Exit(0, "model", module),))


def forced(depths: int, depth: int) -> Array:
    """Thresholds at which every image leaves at one depth."""
    return np.asarray([_NEVER if each < depth else _ALWAYS for each in range(depths - 1)], np.float32)


class AtDepth(nn.Module):
    """A routed network when all images leave at one depth; with its router, all that computes on the way, too."""

    def __init__(self, routed: Routed, depth: int, *, router: bool = True) -> None:
        super().__init__()
        self.routed, self.depth, self.router = routed, depth, router

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (batch, classes), and the depth once for each image."""
        routed = self.routed
        gated = self.router and isinstance(routed.router, Gates)
        if self.router and isinstance(routed.router, ImageRouter):
            routed.router.suffices(x)
        maps, scores = x, x
        for depth in range(self.depth + 1):
            maps = routed.segment(depth, maps)
            if gated or depth == self.depth:
                scores = routed.leave(depth, maps)
            if gated and isinstance(routed.router, Gates) and depth < routed.depths - 1:
                routed.router.suffices(depth, maps, scores)
        return scores, torch.full((x.shape[0],), self.depth, dtype=torch.int64, device=x.device)


def cost_of(module: nn.Module, example: Any) -> Cost:
    """Count on shapes alone what a module executes for one image."""
    traced = trace(module, images(example, 1))
    counts = Counter(op.operator.kind for op in traced.ops)
    used = {traced.parameters.get(ref.index) for op in traced.ops for ref in op.inputs}
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    params = sum(sizes.get(name, 0) for name in used if name is not None)
    return Cost(count_macs(traced).total, params, counts["convolution"], counts["product"])
