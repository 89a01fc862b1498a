"""Which layers of a network read something that pruning changed, and where in a parameter a layer's weight lies."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from compressor.graph.channels import Channels, Ids
from compressor.graph.trace import TensorRef
from compressor.pruning.reconstruction.paths import Call, clipped, find_path, is_affine, only_consumer, summand_factor
from compressor.pruning.reconstruction.products import Product
from compressor.pruning.reconstruction.program import Program
from compressor.pruning.reconstruction.replay import Hook, Replay


@dataclass(frozen=True)
class Reader:
    """A layer, by its weight's name, with all its calls."""

    name: str
    calls: tuple[Call, ...]
    constant: tuple[str, int] | None  # the bias or running mean that takes up a constant, and with which sign

    @property
    def product(self) -> Product:
        return self.calls[0].product

    @property
    def clip(self) -> tuple[float, float] | None:
        """Where an activation cuts off what is compared, if it does at the same values behind all calls."""
        found = {call.clip for call in self.calls}
        return found.pop() if len(found) == 1 else None

    @property
    def start(self) -> int:
        """The operator of the first call."""
        return self.calls[0].at

    @property
    def end(self) -> int:
        return max(call.end for call in self.calls)


def weighted(program: Program) -> Iterator[tuple[int, Product, str | None]]:
    """Every operator that multiplies its input by a weight, with the parameter's name; None where it is computed."""
    fixed: set[int] = set(program.trace.parameters)  # memory that depends on no input
    for at, op in enumerate(program.ops):
        for weight_at in op.operator.weights:
            product = Product(op, weight_at)
            weight, data = op.args[weight_at], op.args[product.data_at]
            if program.memory(weight) in fixed and program.memory(data) not in fixed:
                yield at, product, program.parameter(weight) if _one_matrix(program, product) else None
        if op.inputs and all(program.memory(ref) in fixed for ref in op.inputs):
            fixed |= {program.memory(ref) for ref in op.outputs}


def _one_matrix(program: Program, product: Product) -> bool:
    """Whether all images meet the same matrix, and not each row of a batch one of its own."""
    weight = product.op.args[product.weight_at]
    steps = [name for name, *_ in _taken_out(program, product)]
    return product.convolves or len(weight.shape) == 2 or weight.shape[0] == 1 or "expand" in steps


def touched(dense: Program, small: Program, changed: Collection[str] = ()) -> set[int]:
    """Memory of the dense program that holds something which pruning changed, or the values of these parameters."""
    found = {index for index, name in dense.trace.parameters.items() if name in changed}
    for mine, other in zip(dense.ops, small.ops, strict=False):
        resized = any(a.shape != b.shape for a, b in zip(mine.inputs, other.inputs, strict=True))
        if resized or any(dense.memory(ref) in found for ref in mine.inputs):
            found |= {dense.memory(ref) for ref in mine.outputs}
    return found


def readers(program: Program, affected: set[int] | None = None) -> list[Reader]:
    """Layers whose input is affected (None: all layers), in the order in which they run first."""
    layers = [
        (at, product, name)
        for at, product, name in weighted(program)
        if name is not None and (affected is None or program.memory(product.op.args[product.data_at]) in affected)
    ]
    numbers = {at for at, _, _ in layers}
    found: dict[tuple[Any, ...], list[Call]] = {}
    for at, product, name in layers:
        path = find_path(program, at, numbers)
        call = Call(product, at, path, clipped(program, path[-1] if path else at))
        found.setdefault((name, *_taken_out(program, product)), []).append(call)
    return [Reader(key[0], tuple(calls), _constant(program, calls)) for key, calls in found.items()]


def _taken_out(program: Program, product: Product) -> Iterator[tuple[Any, ...]]:
    """How a weight is taken out of its parameter: calls that do the same use one layer."""
    ref = product.op.args[product.weight_at]
    while program.parameter(ref) is not None and (at := program.maker(ref)) >= 0:
        op = program.ops[at]
        plain = tree_map(lambda part: None if isinstance(part, TensorRef) else part, op.args[1:])
        yield op.name, str(plain), [out.index for out in op.outputs].index(ref.index)
        ref = next(given for given in op.inputs if program.memory(given) == program.memory(ref))


def _constant(program: Program, calls: list[Call]) -> tuple[str, int] | None:
    """What takes up a constant shift of a layer's output: its bias, or the running mean behind it, if only its own."""
    found = {_absorber(program, call) for call in calls}
    absorber = found.pop() if len(found) == 1 else None
    if absorber is None:
        return None
    index = next(number for number, name in program.trace.parameters.items() if name == absorber[0])
    return absorber if len(program.consumers[index]) == len(calls) else None


def _absorber(program: Program, call: Call) -> tuple[str, int] | None:
    op, at, names = call.product.op, call.at, program.trace.parameters
    outputs = op.outputs[0].shape[call.product.channel_dim]
    bias = op.args[call.product.bias_at] if call.product.bias_at is not None else None
    if isinstance(bias, TensorRef):
        return (names[bias.index], 1) if bias.index in names and bias.shape == (outputs,) else None
    ref = op.outputs[0]
    while (behind := only_consumer(program, ref, at)) is not None:
        op = program.ops[behind]
        kind = op.operator.kind
        if kind == "batch norm" and call.product.convolves and is_affine(program, op, ref):
            return (names[op.args[3].index], -1) if op.args[3].index in names else None
        if kind == "sum" and is_affine(program, op, ref) and not call.product.convolves:
            other = next((each for each in op.inputs if each.index != ref.index), None)  # None: a number
            plain = other is not None and [summand_factor(op, place) for place in range(2)] == [1.0, 1.0]
            return (names[other.index], 1) if other and plain and other.shape == (outputs,) else None
        if kind != "reshape":
            return None
        at, ref = behind, op.outputs[0]
    return None


@dataclass(frozen=True)
class View:
    """Where in its parameter's memory a layer's weight lies, and how many rows it is given of two images."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    rows: int = 0  # of a convolution, which has one for every place, not counted

    @classmethod
    def of(cls, name: str, weight: Tensor, parameter: Tensor, rows: int = 0) -> "View":
        offset = weight.storage_offset() - parameter.storage_offset()
        return cls(name, tuple(weight.shape), tuple(weight.stride()), int(offset), rows)

    def on(self, parameter: Tensor) -> Tensor:
        """The weight; what is written to it is written to the parameter."""
        return parameter.detach().as_strided(self.size, self.stride, self.offset + parameter.storage_offset())

    def coordinates(self, parameter: Tensor) -> Tensor:
        """(dimensions of the parameter, *size): for every element of the weight, where in the parameter it stands."""
        labels = torch.empty_like(parameter, dtype=torch.int64, device="cpu")  # keeps the strides
        labels.copy_(torch.arange(parameter.numel()).view(parameter.shape))
        places = labels.as_strided(self.size, self.stride, self.offset).reshape(-1)
        return torch.stack(torch.unravel_index(places, parameter.shape)).view(-1, *self.size)


def survey(replay: Replay, layers: Sequence[Reader]) -> dict[int, View]:
    """Where each layer's weight lies in its parameter, by the operator of its first call, from a run on two images."""
    views: dict[int, View] = {}

    def look(args: Sequence[Any], _: Any, reader: Reader) -> None:
        product = reader.product
        rows = 0 if product.convolves else product.row_count(args, ())
        views[reader.start] = View.of(reader.name, args[product.weight_at], replay.tensors[reader.name], rows)

    hooks: dict[int, list[Hook]] = {reader.start: [partial(look, reader=reader)] for reader in layers}
    replay.run(None, hooks, {}, max(hooks, default=0))
    return views


def kept_outputs(product: Product, view: View, parameter: Tensor, channels: Channels, removed: Ids) -> Tensor:
    """Positions of the dense layer's outputs that the pruned one still has."""

    def kept(line: Tensor) -> NDArray[np.bool_]:
        """Of the elements along one dimension of the weight, given by their coordinates."""
        found = np.ones(line.shape[1], dtype=bool)
        for dim, places in enumerate(line.numpy()):
            ids = channels.identities.get((view.name, dim))
            if ids is not None and (places != places[0]).any():
                found &= ~np.isin(ids[places], removed)
        return found

    where = view.coordinates(parameter)
    if not product.convolves:
        right = torch.stack([product.right(part) for part in where])
        return torch.from_numpy(np.flatnonzero(kept(right.flatten(1, -2)[:, 0])))
    first, second = kept(where.flatten(2)[:, :, 0]), kept(where.flatten(3)[:, 0, :, 0])
    if not product.op.args[6]:
        return torch.from_numpy(np.flatnonzero(first))
    alive = first.reshape(product.op.args[8], -1).any(1)
    return torch.from_numpy(np.flatnonzero(np.outer(alive, second)))


def unknown_ids(product: Product, view: View, parameter: Tensor, channels: Channels, groups: int) -> Ids | None:
    """(unknowns,): the channel that each of a layer's unknowns belongs to; None where that is not tracked."""
    for dim, part in enumerate(view.coordinates(parameter)):
        ids = channels.identities.get((view.name, dim))
        places = product.matrix(part, groups)[:, :, 0].numpy()
        if ids is not None and (places != places[:, :1]).any():
            found = ids[places]
            if (found == found[0]).all():
                first: Ids = found[0]
                return first
    return None
