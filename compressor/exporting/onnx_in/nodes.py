"""A node of an ONNX graph, with what is known of its inputs, and the torch layer that it becomes.

Attributes moved to inputs as operator sets went on (`axes` of Squeeze, `pads` of Pad); `Node.setting` looks in both.
Constant sizes are computed from what comes in, so that they still fit when channels go.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.graph.rules_shapes import regrouped
from compressor.loading.onnx_network import Operation
from compressor.report.manifest import Array

Shape = tuple[int, ...]


def reshaped(before: Shape, after: Shape, batch: int) -> list[Any]:
    """The sizes of a reshape for `loading.onnx_network`, with the batch left open.

    Of every run of dimensions that are joined or split the last size is computed from those that go in, as in code by
    hand; where the batch is in the run it is the first size.
    """
    sizes: list[Any] = list(after)
    free = 0  # of the dimension that follows from all others
    for sources, targets in regrouped(before, after):
        if 0 in sources and batch > 1:
            free = targets[0]
        elif targets[0] != 0 or batch > 1:
            divisor = math.prod(after[dim] for dim in targets[:-1])
            sizes[targets[-1]] = [sources, divisor]
    if sizes:
        sizes[free] = -1
    return sizes


def resliced(shape: Shape, slices: Sequence[tuple[int, int, int, int]]) -> Operation:
    """Slices of (axis, start, end, step); one of several equal parts of a dimension stays an equal part."""
    found = []
    for axis, start, end, step in slices:
        dim = axis % len(shape)
        first, last, _ = slice(start, end, step).indices(shape[dim])
        length = last - first
        if (
            len(slices) == 1
            and step == 1
            and 0 < length < shape[dim]
            and not shape[dim] % length
            and not first % length
        ):
            return Operation("Part", dim=dim, parts=shape[dim] // length, index=first // length)
        found.append([dim, first, None if last >= shape[dim] else last, step])
    return Operation("Slice", slices=found)


def is_whole(index: Array, size: int) -> bool:
    """Whether an index takes everything in its order."""
    return bool(index.size == size and (index.ravel() == np.arange(size)).all())


def same_padding(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, upper: bool
) -> list[int]:
    """Pads (all beginnings, then all ends) with which a window makes ceil(size / stride) places."""
    begins, ends = [], []
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations):
        total = max(0, (-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size)
        less = total // 2
        begins.append(less if upper else total - less)
        ends.append(total - less if upper else less)
    return [*begins, *ends]


class Untaken(Exception):
    """Why an operator cannot be taken in, in a few words."""


@dataclass
class Values:
    """What is known of a graph's values, by name, from running it on a batch of images."""

    image: str
    opset: int
    batch: int  # images in the run
    constants: dict[str, Array]  # what does not depend on the images
    varying: set[str]  # constants that depend on the batch size
    shapes: dict[str, Shape]  # of what depends on the images
    readers: dict[str, list[Any]]  # value -> the nodes that read it
    views: dict[str, str] = field(default_factory=dict)  # what was only reshaped -> what it was before


@dataclass(frozen=True)
class Built:
    """The layer for a node. None stands for the first of `sources` itself."""

    layer: nn.Module | None
    sources: Sequence[str]
    weights: tuple[str, ...] = ()  # names of the constants that it holds, where another node may be the same layer
    results: Sequence[str] = ()  # where other than the node's own
    covered: tuple[int, ...] = ()  # ids of further nodes that the layer computes


@dataclass(frozen=True)
class Node:
    """A node, with what is known of its inputs."""

    proto: Any
    values: Values
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def operator(self) -> str:
        return str(self.proto.op_type)

    @property
    def inputs(self) -> list[str]:
        return [name for name in self.proto.input if name]

    def has(self, place: int) -> bool:
        return len(self.proto.input) > place and bool(self.proto.input[place])

    def is_constant(self, place: int) -> bool:
        return self.has(place) and self.proto.input[place] in self.values.constants

    def constant(self, place: int) -> Array:
        """The value of an input. Raises Untaken where it depends on the images or their number."""
        name = self.proto.input[place]
        if not self.is_constant(place) or name in self.values.varying:
            raise Untaken(f"its input {place} is computed while it runs")
        return self.values.constants[name]

    def tensor(self, place: int) -> Tensor:
        """A constant as a torch tensor of its own."""
        return torch.from_numpy(np.array(self.constant(place)))

    def setting(self, key: str, place: int | None = None) -> Any:
        """An attribute, or the input at `place` that took its place, as Python's own values; None without."""
        if key in self.attributes:
            return self.attributes[key]
        return self.constant(place).tolist() if place is not None and self.has(place) else None

    def shape(self, place: int = 0) -> Shape:
        name = self.proto.input[place]
        return self.values.shapes[name] if name in self.values.shapes else self.values.constants[name].shape

    @property
    def after(self) -> Shape:
        """The shape of the first result."""
        return self.values.shapes[self.proto.output[0]]

    def axis(self, default: int, key: str = "axis") -> int:
        return int(self.attributes.get(key, default)) % max(1, len(self.shape()))

    def pads(self, kernel: Sequence[int]) -> list[int]:
        """Of the spatial dimensions, all beginnings and then all ends, as ONNX has it."""
        rank, how = len(kernel), self.attributes.get("auto_pad", "NOTSET")
        if how in ("NOTSET", "VALID"):
            return list(self.attributes.get("pads", [0] * 2 * rank)) if how == "NOTSET" else [0] * 2 * rank
        return same_padding(self.shape()[2:], kernel, self.strides(rank), self.dilations(rank), upper="UPPER" in how)

    def strides(self, rank: int) -> list[int]:
        return list(self.attributes.get("strides", [1] * rank))

    def dilations(self, rank: int) -> list[int]:
        return list(self.attributes.get("dilations", [1] * rank))


def flipped(pads: Sequence[int]) -> list[int]:
    """ONNX's pads as torch's: the last dimension first, a pair for each."""
    rank = len(pads) // 2
    return [pads[dim + end] for dim in reversed(range(rank)) for end in (0, rank)]
