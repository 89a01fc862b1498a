"""What of a network can be skipped: residual blocks, and convolutions with their norm and activation; and through what.

The paper skips whole convolutional layers of one height and width; here a unit may change the shape, and what stands in
for it is said with it. Our reading of a point the paper leaves open (its layers have different numbers of maps, and one
dense layer): a residual block leaves its own shortcut path; elsewhere the way around has no parameters.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.graph.cuts import Chain
from compressor.graph.program import module_of, operator_of
from compressor.graph.shortcuts import is_layer, own_shortcut
from compressor.profiling.costs import macs_of
from compressor.report import units as written


class Shortcut(nn.Module):
    """Maps (batch, channels, height, width) brought to another shape without parameters.

    Larger maps are averaged over windows as wide as the stride; missing channels are zero, superfluous ones are
    averaged with their neighbours.
    """

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        if self.before == self.after:
            return x
        return _channels(_pooled(x, self.before[1:], self.after[1:]), self.after[0])


class ExitHead(nn.Module):
    """A small classifier for maps on which the network's own head was not trained: means over a grid, then linear."""

    def __init__(self, shape: tuple[int, ...], classes: int, side: int) -> None:
        super().__init__()
        self.stride, means = _grid(shape, side)
        self.linear = nn.Linear(shape[0] * math.prod(means), classes)

    def forward(self, maps: Tensor) -> Tensor:
        pool: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(self.stride) - 1]
        y: Tensor = self.linear(pool(maps, self.stride).flatten(1))
        return y


def head_side(shape: tuple[int, ...], classes: int, most: int) -> int:
    """The finest grid, of about 16x16 to 1x1 means, with which an exit head takes at most so many MACs."""
    for side in (16, 8, 4, 2):
        if shape[0] * math.prod(_grid(shape, side)[1]) * classes <= most:
            return side
    return 1


def _grid(shape: tuple[int, ...], side: int) -> tuple[list[int], list[int]]:
    strides = [max(1, round(size / side)) for size in shape[1:]]
    return strides, [size // stride for size, stride in zip(shape[1:], strides)]


class Skippable(nn.Module):
    """A unit of the network and the way around it."""

    def __init__(self, body: fx.GraphModule, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.body = body
        self._own = own_shortcut(body)
        self.around = Shortcut(before, after) if self._own is None else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    def skip(self, x: Tensor) -> Tensor:
        """What takes the place of the unit's output."""
        if self.around is not None:
            y: Tensor = self.around(x)
        else:
            # The block's other path runs on the same module, so its weights and statistics are held once.
            y = fx.Interpreter(self.body, graph=self._own).run(x)
        return y


def shortcut_fits(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a parameter-free shortcut exists: the shape stays, or maps become no larger."""
    if tuple(before) == tuple(after):
        return True
    return len(before) == len(after) == 3 and all(old >= new for old, new in zip(before[1:], after[1:]))


def shortcut_text(body: fx.GraphModule, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """For the list of units: what an image that skips this one goes through."""
    own = own_shortcut(body)
    if own is not None:
        return "its own shortcut path" if any(is_layer(node) for node in own.nodes) else "identity"
    parts = []
    if before[1:] != after[1:]:
        parts.append("average pooling")
    if before[0] < after[0]:
        parts.append(f"{after[0] - before[0]} zero channels")
    elif before[0] > after[0]:
        parts.append("mean of neighbouring channels")
    return ", ".join(parts) or "identity"


def _pooled(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Maps of size `before` averaged to size `after`: over the layer's stride where that fits, else adaptively."""
    if tuple(before) == tuple(after):
        return x
    strides = [max(1, round(old / new)) for old, new in zip(before, after)]
    if all(old // stride == new for old, new, stride in zip(before, after, strides)):
        return functional.avg_pool2d(x, strides)
    if all(-(-old // stride) == new for old, new, stride in zip(before, after, strides)):
        return functional.avg_pool2d(x, strides, ceil_mode=True)
    return functional.adaptive_avg_pool2d(x, (after[0], after[1]))


def _channels(x: Tensor, wanted: int) -> Tensor:
    missing = wanted - x.shape[1]
    if missing >= 0:
        return functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    flat = functional.adaptive_avg_pool1d(x.flatten(2).transpose(1, 2), wanted)
    maps: Tensor = flat.transpose(1, 2).unflatten(2, x.shape[2:])
    return maps


@dataclass(frozen=True)
class Unit:
    """A part of the network that an image can go around, from cut `start` to cut `end` of the chain."""

    index: int  # the paper's layer number; images labelled with it run units 0..index
    name: str  # of the module that holds it
    kind: str  # "block": branches that meet again; "layer": a convolution with its norm and activation
    start: int
    end: int
    input_shape: tuple[int, ...]  # without the batch
    output_shape: tuple[int, ...]
    macs: int  # multiply-adds for one image
    instead: str  # what an image that skips the unit goes through


@dataclass(frozen=True)
class Units:
    """All units of a network in order, and what was looked at and cannot be skipped, with the reason."""

    units: tuple[Unit, ...]
    refused: dict[str, str]  # name -> reason


def find_units(chain: Chain) -> Units:
    """The skippable units of a network, from its input to its classifier head.

    Between two units lie parts that every image runs (pooling); behind the last one lies the head, which has at least
    one convolution or linear layer. Unit 0 is the first layer and is never skipped.

    Raises ModelError where there are fewer than two: nothing can be skipped.
    """
    found: list[Unit] = []
    refused: dict[str, str] = {}
    head = _start_of_head(chain)
    for start, end in _candidates(chain, head):
        segment = chain.segment(start, end)
        before, after = chain.cuts[start].shape, chain.cuts[end].shape
        block, name = _is_block(segment), _name(segment)
        if own_shortcut(segment) is None and not shortcut_fits(before, after):
            became = " become ".join(map(written.shape, (before, after)))
            refused[name] = f"its maps of {became}, for which there is no plain shortcut"
            continue
        instead = shortcut_text(segment, before, after) if found else "(never skipped)"
        kind, macs = "block" if block else "layer", macs_of(segment, before)
        found.append(Unit(len(found), name, kind, start, end, before, after, macs, instead))
    if len(found) < 2:
        reasons = "".join(f"; {name}: {reason}" for name, reason in refused.items())
        found_few = "one convolution" if found else "no convolution"
        raise ModelError(f"the network has nothing to skip: there is {found_few} or block before its head{reasons}")
    return Units(tuple(found), refused)


def _start_of_head(chain: Chain) -> int:
    """The cut at which the operation with weights begins that makes the scores: it cannot be skipped.

    A convolution behind it that works on every map of its own (upsampling of scores) makes none.
    """
    for start in reversed(range(len(chain.cuts) - 1)):
        if any(is_layer(node) and not _is_depthwise(node) for node in chain.segment(start, start + 1).graph.nodes):
            return start
    raise ModelError("the network has no convolution or linear layer: there is nothing to skip")


def _candidates(chain: Chain, head: int) -> Iterator[tuple[int, int]]:
    """Steps of the chain that convolve, each with the steps behind it that only normalise, activate or gate."""
    start = 0
    while start < head:
        end = start + 1
        if not _is_candidate(chain, start):
            start = end
            continue
        work = macs_of(chain.segment(start, end), chain.cuts[start].shape)
        while end < head and _follows(chain, end, work):
            end += 1
        yield start, end
        start = end


def _is_candidate(chain: Chain, start: int) -> bool:
    """Whether the step is a convolution on maps, or a block whose output has its input's shape or is maps."""
    before, after = chain.cuts[start].shape, chain.cuts[start + 1].shape
    maps = len(before) == len(after) == 3
    tokens = before == after and len(before) > 1
    return (maps or tokens) and _computes(chain.segment(start, start + 1))


def _follows(chain: Chain, start: int, work: int) -> bool:
    """Whether the step behind a unit of `work` MACs belongs to it: it keeps the shape, does not pool, costs little.

    Such as a norm, an activation, or squeeze-and-excitation's gate.
    """
    before, after = chain.cuts[start].shape, chain.cuts[start + 1].shape
    segment = chain.segment(start, start + 1)
    pools = any(operator_of(node).kind in ("pool", "resize") for node in segment.graph.nodes)
    if before != after or pools or _is_block(segment) != _computes(segment):
        return False
    return not _computes(segment) or (own_shortcut(segment) is None and macs_of(segment, before) < _LITTLE * work)


_LITTLE = 0.05  # of the convolution in front of it


def _computes(segment: fx.GraphModule) -> bool:
    return any(is_layer(node) for node in segment.graph.nodes)


def _is_depthwise(node: fx.Node) -> bool:
    if operator_of(node).kind != "convolution" or len(node.args) <= _GROUPS or node.args[_GROUPS] == 1:
        return False
    return bool(node.args[1].meta["val"].shape[1] == 1)  # type: ignore[union-attr]


_GROUPS = 6  # position of a convolution's argument


def _is_block(segment: fx.GraphModule) -> bool:
    """Whether branches meet in it: an operator with two operands that are both computed from the input's values."""
    flowing, met = {next(iter(segment.graph.nodes))}, False
    for node in segment.graph.nodes:
        operands = {each for each in node.all_input_nodes if each in flowing}
        met = met or (len(operands) > 1 and node.op == "call_function")
        if operands and operator_of(node).kind != "size":
            flowing.add(node)
    return met


def _name(segment: fx.GraphModule) -> str:
    """The innermost module that all weighted operators of the segment lie in."""
    paths = [module_of(node).split(".") for node in segment.graph.nodes if is_layer(node)]
    levels = list(takewhile(lambda names: len(set(names)) == 1, zip(*paths)))
    return ".".join(names[0] for names in levels) or ".".join(paths[0]) or "(model)"
