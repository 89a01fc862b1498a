"""How an ONNX graph's constant sizes follow from what comes in, so that they still fit when channels go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

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
