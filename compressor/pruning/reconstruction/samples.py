"""Rows of a reader's inputs and outputs, drawn while the network runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compressor.pruning.reconstruction.calibration import Draw
from compressor.pruning.reconstruction.gram import Level, Rows
from compressor.pruning.reconstruction.paths import Way
from compressor.pruning.reconstruction.replay import Hook


def _empty() -> Tensor:
    return torch.empty(0)


@dataclass
class Sample:
    """One call of a layer for one batch: its rows and targets at the drawn places."""

    count: int = 0
    shape: tuple[int, ...] = ()  # of the result
    rows: Tensor = field(default_factory=_empty)
    x: Tensor = field(default_factory=_empty)  # (groups, rows, unknowns)
    full: Tensor = field(default_factory=_empty)  # the same in the dense network
    y: Tensor = field(default_factory=_empty)  # (1, rows, outputs)
    values: Tensor = field(default_factory=_empty)  # where the outputs are compared
    scale: Tensor = field(default_factory=_empty)  # of the outputs there

    def back(self, way: Way, values: Tensor, end: int, kept: Tensor | None, *, shift: bool) -> Tensor:
        """(1, rows, outputs): what `way.back` makes of values behind operator `end`, at the rows of this sample.

        It is a scale and a shift: where the layout stays, those of one image do, at the places of the rows.
        """
        product, one = way.call.product, values[:1]
        if way.same_layout(end) and len(values) and self.count % len(values) == 0:
            scale = way.back(torch.ones_like(one), end, shift=False)
            if scale.shape == one.shape:
                places = self.rows % (self.count // len(values))
                found = product.outputs(values, self.rows, kept, 1) * product.outputs(scale, places, kept, 1)
                origin = way.back(torch.zeros_like(one), end, shift=True) if shift else None
                return found if origin is None else found + product.outputs(origin, places, kept, 1)
        return product.outputs(way.back(values, end, shift=shift), self.rows, kept, 1)

    def grouped(self, groups: int, clip: tuple[float, float] | None) -> Rows:
        """With the outputs of each group by themselves."""
        if clip is None:
            return Rows(self.x, self.y[0].unflatten(1, (groups, -1)).transpose(0, 1))
        y, values, scale = (
            part[0].unflatten(1, (groups, -1)).transpose(0, 1) for part in (self.y, self.values, self.scale)
        )
        return Rows(self.x, y, Level(values, scale, *clip))


def watch(way: Way, draw: Draw, after: dict[int, list[Hook]], kept: Tensor | None, *, inputs: bool) -> Sample:
    """Hook a call of a layer: the sample is filled in while the network runs.

    Its targets are the layer's outputs, as far as `kept`, told from what stands where they are compared.
    """
    sample, call = Sample(), way.call
    product = call.product

    def ran(args: Sequence[Any], result: Tensor) -> None:
        sample.shape = tuple(result.shape)
        sample.count = product.row_count(args, sample.shape)
        sample.rows = draw.rows(sample.count).to(result.device)
        if inputs:
            sample.x = product.inputs(args, sample.shape, sample.rows)

    def compared(_: Sequence[Any], result: Any) -> None:
        values = result if isinstance(result, Tensor) else result[0]
        sample.y = sample.back(way, values, call.end, kept, shift=True)
        inverse = sample.back(way, values.new_ones(()).expand_as(values), call.end, kept, shift=False)[:, :1]
        sample.scale = torch.where(inverse == 0, 0, 1 / inverse)
        if call.clip is not None:
            origin = sample.back(way, values.new_zeros(()).expand_as(values), call.end, kept, shift=True)
            sample.values = sample.scale * (sample.y - origin)

    after[call.at].append(ran)
    after[call.end].append(compared)
    return sample
