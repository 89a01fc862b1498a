"""Layers as products of matrices, alike for convolutions of any kind and linear layers.

A convolution multiplies the unfolded input at one place of its output by a matrix; so does a linear layer, a transposed
convolution, and each group of a grouped one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.graph.trace import Op

Args = Sequence[Any]  # of an operator


@dataclass(frozen=True)
class Product:
    """One call of a layer as products, one for each group: (rows, unknowns) x (unknowns, outputs).

    The rows of all images follow each other. `weight_at` says which of the operator's arguments is the weight.
    """

    op: Op
    weight_at: int

    @property
    def convolves(self) -> bool:
        return self.op.operator.kind == "convolution"

    @property
    def bias_at(self) -> int | None:
        return self.op.operator.bias

    @property
    def data_at(self) -> int:
        first = 1 if self.bias_at == 0 else 0
        return first + (self.weight_at == first)

    @property
    def channel_dim(self) -> int:
        """The dimension of the result that holds the outputs."""
        return 1 if self.convolves else -2 if self._left else -1

    @property
    def _left(self) -> bool:
        return not self.convolves and self.weight_at < self.data_at

    def groups(self, args: Args) -> int:
        return int(args[8]) if self.convolves else 1

    def row_count(self, args: Args, result: Sequence[int]) -> int:
        """How many rows there are; `result` is the shape of the result."""
        if self.convolves:
            return result[0] * math.prod(result[2:])
        return math.prod(self._turned(args[self.data_at]).shape[:-1])

    def inputs(self, args: Args, result: Sequence[int], rows: Tensor) -> Tensor:
        """(groups, rows, unknowns); of a convolution the unknowns are (taps, input channels of a group)."""
        if not self.convolves:
            data: Tensor = self._turned(args[self.data_at])
            return data.reshape(1, -1, data.shape[-1]).index_select(1, rows)
        x: Tensor = args[0]
        weight, groups = args[1], args[8]
        shapes = tuple(x.shape[2:]), tuple(result[2:]), tuple(weight.shape[2:])
        table = _taps(*shapes, *(tuple(map(int, values)) for values in args[3:6]), bool(args[6])).to(x.device)
        places, inside = len(table), math.prod(x.shape[2:])
        flat = functional.pad(x.flatten(2), (0, 1)).transpose(1, 2).reshape(-1, x.shape[1])
        index = table[rows % places] + (rows // places * (inside + 1))[:, None]
        taken = flat.index_select(0, index.flatten()).view(len(rows), table.shape[1], groups, -1)
        return taken.permute(2, 0, 1, 3).flatten(2)

    def outputs(self, result: Tensor, rows: Tensor, kept: Tensor | None, groups: int) -> Tensor:
        """(groups, rows, outputs of a group) of a result, of the outputs that are kept (None: all)."""
        if self.convolves:
            flat = result.flatten(2)
            taken = flat[rows // flat.shape[2], :, rows % flat.shape[2]]
        else:
            turned = self._turned(result)
            taken = turned.reshape(-1, turned.shape[-1]).index_select(0, rows)
        taken = taken if kept is None else taken.index_select(1, kept.to(taken.device))
        parted: Tensor = taken.unflatten(1, (groups, -1))
        return parted.transpose(0, 1)

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """(groups, unknowns, outputs of a group) of a weight."""
        if not self.convolves:
            return self.right(weight)[None]
        parts: Tensor = weight.flatten(2).unflatten(0, (groups, -1))  # (groups, outputs, inputs, taps), or inputs first
        return parts.permute((0, 3, 1, 2) if self.op.args[6] else (0, 3, 2, 1)).flatten(1, 2)

    def write_(self, weight: Tensor, matrix: Tensor) -> None:
        """Make the weight what `matrix` gives for it."""
        if not self.convolves:
            self.right(weight).copy_(matrix[0])
            return
        parts = matrix.unflatten(1, (math.prod(weight.shape[2:]), -1))
        weight.copy_(parts.permute((0, 2, 3, 1) if self.op.args[6] else (0, 3, 2, 1)).reshape(weight.shape))

    def right(self, weight: Tensor) -> Tensor:
        """(inputs, outputs) of a linear layer's weight, also where it is repeated for every image."""
        if self.op.operator.outputs_first:
            return weight.T
        return self._turned(weight[0] if weight.ndim == 3 else weight)

    def _turned(self, matrix: Tensor) -> Tensor:
        """As if the weight stood on the right."""
        return matrix.mT if self._left else matrix


@lru_cache(maxsize=64)
def _taps(
    inside: tuple[int, ...],
    outside: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
) -> Tensor:
    """(places of the output, taps): which place of the flat input a tap reads there; one past the last where none."""
    index = torch.zeros(1, 1, dtype=torch.int64)
    valid = torch.ones(1, 1, dtype=torch.bool)
    for dim, size in enumerate(inside):
        step, pad, gap = (values[min(dim, len(values) - 1)] for values in (stride, padding, dilation))
        place, tap = torch.arange(outside[dim])[:, None], torch.arange(kernel[dim])
        at = place + pad - tap * gap if transposed else place * step - pad + tap * gap
        good = (at % step == 0) if transposed else torch.ones_like(at, dtype=torch.bool)
        at = at // step if transposed else at
        good &= (at >= 0) & (at < size)
        index = (index[:, None, :, None] * size + at.clamp(0, size - 1)[:, None]).flatten(2).flatten(0, 1)
        valid = (valid[:, None, :, None] & good[:, None]).flatten(2).flatten(0, 1)
    return torch.where(valid, index, math.prod(inside))
