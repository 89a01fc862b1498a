"""Where a layer's output is compared with the dense network's: where it is made, behind its norm, or at a sum.

A layer that does no more than join a sum (behind batch norm, a scale, a change of layout) is compared at the last such
sum: there it can also make up for what the other summands lost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from compressor.graph.rules_shapes import order_of, permute
from compressor.graph.trace import Op, TensorRef
from compressor.pruning.reconstruction.calibration import Draw
from compressor.pruning.reconstruction.gram import Level, Rows
from compressor.pruning.reconstruction.products import Product
from compressor.pruning.reconstruction.program import Program
from compressor.pruning.reconstruction.replay import DivergedError, Hook


def only_consumer(program: Program, ref: TensorRef, behind: int) -> int | None:
    """The only operator that is given a tensor as it is after operator `behind`; None for several, or an output.

    What is given the tensor after an operator changed it in place is given something else.
    """
    later = [at for at in program.consumers.get(ref.index, ()) if at > behind]
    if later and any(out.index == ref.index for out in program.ops[later[0]].outputs):
        return later[0]
    output = any(out.index == ref.index for out in program.trace.outputs)
    return later[0] if len(later) == 1 and not output else None


def is_affine(program: Program, op: Op, ref: TensorRef) -> bool:
    """Whether an operator applies to each channel of `ref` a scale and a shift that are parameters."""
    kind = op.operator.kind
    if kind == "batch norm":
        plain = op.args[3] is not None and op.args[4] is not None and op.args[5] is not True
        return plain and op.args[0].index == ref.index
    others = [other for other in op.inputs if other.index != ref.index]
    if not all(other.index in program.trace.parameters for other in others):
        return False
    return kind in ("sum", "scale") or (kind == "quotient" and op.args[0] == ref and not op.kwargs)


def find_path(program: Program, at: int, layers: set[int]) -> tuple[int, ...]:
    """The operators behind the layer at `at` up to where it is compared; `layers` are those that are solved, too."""
    path: list[int] = []
    sums = 0
    start, ref = at, program.ops[at].outputs[0]
    while (behind := only_consumer(program, ref, at)) is not None:
        op = program.ops[behind]
        joined = op.operator.kind == "sum" and _joins(program, op, ref, start, behind, layers)
        if not (joined or op.operator.keeps in ("all", "layout") or is_affine(program, op, ref)):
            break
        path.append(behind)
        sums = len(path) if joined else sums
        at, ref = behind, op.outputs[0]
    norm = 1 if path and program.ops[path[0]].operator.kind == "batch norm" else 0
    return tuple(path[: sums or norm])


def clipped(program: Program, at: int) -> tuple[float, float] | None:
    """Between which values something tells differences of an operator's result, if only an activation is given it."""
    behind = only_consumer(program, program.ops[at].outputs[0], at)
    if behind is None:
        return None
    op = program.ops[behind]
    return None if op.operator.clip is None else op.operator.clip(op)


def _joins(program: Program, op: Op, ref: TensorRef, start: int, at: int, layers: set[int]) -> bool:
    """Whether a sum adds something of the same shape that neither depends on the layer nor on one solved later."""
    others = [other for other in op.inputs if other.index != ref.index]
    if len(others) != 1 or others[0].shape != ref.shape or op.outputs[0].shape != ref.shape:
        return False
    if program.parameter(others[0]) is not None:
        return False
    waiting, seen = [others[0]], set[int]()
    while waiting:
        for writer in program.writers(program.memory(waiting.pop())):
            if start <= writer < at and writer not in seen:
                seen.add(writer)
                waiting.extend(program.ops[writer].inputs)
    return start not in seen and not seen & layers


@dataclass(frozen=True)
class Call:
    """One call of a layer, and the operators from its output to where it is compared (none: there)."""

    product: Product
    at: int
    path: tuple[int, ...]
    clip: tuple[float, float] | None = None  # where an activation behind that cuts off

    @property
    def end(self) -> int:
        """The operator whose result is compared."""
        return self.path[-1] if self.path else self.at


@dataclass(frozen=True)
class Way:
    """From a layer's output to where it is compared, and back, in one of the two networks."""

    call: Call
    program: Program
    tensors: Mapping[str, Tensor]

    def sums(self) -> list[tuple[int, int, float]]:
        """Of every sum: its operator, which argument the other summand is, and what it is multiplied by."""
        found = []
        for number in self.call.path:
            op, given = self.program.ops[number], self._given(number)
            if op.operator.kind == "sum" and not is_affine(self.program, op, given):
                position = 1 if op.args[0].index == given.index else 0
                found.append((number, position, summand_factor(op, position)))
        return found

    def same_layout(self, end: int) -> bool:
        """Whether values behind operator `end` lie as the layer's outputs do."""
        return all(self.program.ops[number].operator.keeps != "layout" for number in self.call.path if number <= end)

    def back(self, values: Tensor, end: int, *, shift: bool) -> Tensor:
        """Values behind operator `end` as the layer's output of which they are a scale (and, with `shift`, a shift).

        Other summands are not taken away; where the scale is zero, so is the result.
        """
        for number in reversed([number for number in self.call.path if number <= end]):
            op, given = self.program.ops[number], self._given(number)
            if op.operator.keeps is not None:
                values = _unlaid(op, given, values)
            elif is_affine(self.program, op, given):
                scale, moved = self._affine(op, given, values)
                values = torch.where(scale == 0, 0, (values - moved if shift else values) / scale)
            else:
                values = values / summand_factor(op, 0 if op.args[0].index == given.index else 1)
        return values

    def _given(self, number: int) -> TensorRef:
        """What an operator is given of the path."""
        place = self.call.path.index(number)
        return self.program.ops[self.call.path[place - 1] if place else self.call.at].outputs[0]

    def _affine(self, op: Op, given: TensorRef, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of an operator, found by what it makes of ones and of zeros."""

        def made(value: int) -> Tensor:
            x = torch.full((1, *like.shape[1:]), value, dtype=like.dtype, device=like.device)

            def real(part: Any) -> Any:
                if not isinstance(part, TensorRef):
                    return part
                return x if part.index == given.index else self.tensors[self.program.trace.parameters[part.index]]

            args, keywords = tree_map(real, (list(op.args), dict(op.kwargs)))
            result = op.func(*args, **keywords)
            return result if isinstance(result, Tensor) else result[0]

        moved = made(0)
        scale = made(1) - moved
        return torch.where(scale.abs() < 1e-6 * scale.abs().max(), 0, scale), moved


def summand_factor(op: Op, position: int) -> float:
    """What a sum multiplies one of its arguments by."""
    return float(op.func(*(torch.tensor(float(at == position)) for at in range(2)), **op.kwargs))


def _unlaid(op: Op, given: TensorRef, values: Tensor) -> Tensor:
    """Values in the layout before an operator; the batch is in the first dimension, there maybe with other ones."""
    if op.operator.keeps == "all":
        return values
    if op.operator.rule is permute:
        order = order_of(op)
        return values.permute([order.index(dim) for dim in range(len(order))])
    if values[0].numel() != math.prod(op.outputs[0].shape[1:]):
        raise DivergedError("images have other sizes")
    return values.reshape(-1, *given.shape[1:])


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
