"""Multiply-adds of every way through a skipping network, counted on the operators that run, the router's included."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from compressor.graph.trace import trace
from compressor.profiling.macs import macs_of
from compressor.routing.network import Routed
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


class _Piece(nn.Module):
    """A part of the network as a module, for the trace."""

    def __init__(self, routed: Routed, call: Callable[[Routed, Tensor], Tensor]) -> None:
        super().__init__()
        self.routed = routed
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.routed, x)


def _macs(routed: Routed, call: Callable[[Routed, Tensor], Tensor], shape: tuple[int, ...]) -> int:
    return macs_of(_Piece(routed, call), shape)


def _shape_after(routed: Routed, depth: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found = trace(_Piece(routed, lambda net, x: net.segment(depth, x)), torch.zeros(1, *shape)).outputs[0].shape
    return tuple(found[1:])
