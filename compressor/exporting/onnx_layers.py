"""The layers of an exported graph that hold a network's weights: their channels, single ones, the graph with fewer."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.exporting.onnx_profile import shapes_of
from compressor.graph.channels import Channels, Ids, Key
from compressor.profiling.timetable import Layer, Widths

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a layer's channels at which it is timed
_OPERATORS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, eq=False)
class Placed:
    """A layer of a graph: what it is but for its widths, and the channels that these count."""

    layer: Layer
    taken: Ids | int
    made: Ids | int
    ins: tuple[int, ...]  # widths at which it is timed, the last as it stands in the network
    outs: tuple[int, ...]

    @property
    def dense(self) -> Widths:
        """Its widths in the network."""
        return self.ins[-1], self.outs[-1]

    @property
    def diagonal(self) -> bool:
        """Whether every channel has a filter of its own."""
        return self.layer.groups == 0


def placed(proto: Any, channels: Channels, block: int) -> list[Placed]:
    """The layers of a graph (onnx.ModelProto, shapes inferred) that hold weights of the network, to be timed at
    multiples of `block`, those of grouped convolutions at multiples of their groups.
    """
    free = np.concatenate([np.empty(0, np.int64), *(group.ids for group in channels.free)])
    shapes = shapes_of(proto.graph)
    weights = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type in _OPERATORS and node.input[1] in weights and node.input[0] in shapes:
            layer, sides, dense = _layer(node, shapes[node.input[0]], weights[node.input[1]], channels)
            (taken, made), (few, many) = sides, dense
            step = max(layer.groups, 1)  # whole channels for each group
            step = math.lcm(block, step) if 2 * math.lcm(block, step) <= min(few, many) else step
            ins, outs = _widths(taken, few, free, step), _widths(made, many, free, step)
            found.append(Placed(layer, _or(taken, few), _or(made, many), ins, outs))
    return found


def _layer(
    node: Any, given: tuple[int, ...], weight: tuple[int, ...], channels: Channels
) -> tuple[Layer, tuple[Ids | None, Ids | None], Widths]:
    """A node's layer, the channels that it takes and makes, and how many."""
    import onnx

    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    groups = int(attributes.get("group", 1))
    first, second = (channels.identities.get((node.input[1], dim)) for dim in (0, 1))
    if node.op_type == "Gemm":
        made, taken = (first, second) if attributes.get("transB") else (second, first)
        sizes = (weight[0], weight[1]) if attributes.get("transB") else (weight[1], weight[0])
        return Layer("Gemm", (math.prod(given[:-1]),)), (taken, made), (sizes[1], sizes[0])
    transposed = node.op_type == "ConvTranspose"
    ins, outs = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    taken, made = (first, _repeated(second, groups)) if transposed else (_repeated(second, groups), first)
    names = ("kernel_shape", "strides", "pads", "dilations", "output_padding")
    settings = tuple((name, tuple(attributes[name])) for name in names if name in attributes)
    if settings and "kernel_shape" not in attributes:
        settings = (("kernel_shape", weight[2:]), *settings)
    diagonal = groups == ins == outs and groups > 1
    layer = Layer(node.op_type, given[2:], settings, 0 if diagonal else groups)
    return layer, (first, first) if diagonal else (taken, made), (ins, outs)


def _makes(node: Any) -> Key:
    """Where the channels of a layer's output stand: its weight, and the dimension."""
    across = any(each.name == "transB" and each.i for each in node.attribute)
    return node.input[1], int(node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not across))


def _repeated(ids: Ids | None, groups: int) -> Ids | None:
    return ids if ids is None or groups == 1 else np.tile(ids, groups)


def _or(ids: Ids | None, size: int) -> Ids | int:
    return size if ids is None else ids


def _widths(side: Ids | None, size: int, free: Ids, step: int) -> tuple[int, ...]:
    if side is None or not np.isin(side, free).any():
        return (size,)
    stepped = {max(step, round(share * size / step) * step) for share in SHARES}
    return tuple(sorted({width for width in stepped if width < size} | {size}))


def samples(layers: Sequence[Placed]) -> list[tuple[Layer, Widths]]:
    """The widths at which every distinct layer is to be timed, those that say most first: as it is, the ends."""
    rounds: list[dict[tuple[Layer, Widths], None]] = [{}, {}, {}]
    for each in layers:
        pairs = [(a, a) for a in each.ins] if each.diagonal else [(a, b) for a in each.ins for b in each.outs]
        for taken, made in pairs:
            ends = (taken in (each.ins[0], each.ins[-1])) + (made in (each.outs[0], each.outs[-1]))
            place = 0 if (taken, made) == each.dense else 1 if ends == 2 else 2
            rounds[place][each.layer, (taken, made)] = None
    return list({job: None for jobs in rounds for job in jobs})


def single(layer: Layer, widths: Widths, batch: int = 1) -> tuple[bytes, tuple[int, ...]]:
    """A graph of one layer, some hundred bytes long (its weights are a constant that the runtime unfolds), and the
    shape of its input `x`.
    """
    from onnx import TensorProto, helper

    taken, made = widths
    groups = taken if layer.groups == 0 else layer.groups
    settings: dict[str, Any] = dict(layer.settings)
    weight: tuple[int, ...]
    shape: tuple[int, ...]
    if layer.operator == "Gemm":
        weight, shape = (made, taken), (*layer.size, taken)
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    else:
        sides = (taken, made // groups) if layer.operator == "ConvTranspose" else (made, taken // groups)
        weight, shape = (*sides, *settings["kernel_shape"]), (batch, taken, *layer.size)
        node = helper.make_node(layer.operator, ["x", "w"], ["y"], group=groups, **settings)
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.01])
    size = helper.make_tensor("size", TensorProto.INT64, [len(weight)], weight)
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["w"], value=value), node]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", [given], [gives], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString(), shape


def without(proto: Any, channels: Channels, removed: Iterable[int]) -> Any:
    """The graph (onnx.ModelProto) without these channels, to be timed and not to be used: weights are cut, and what
    else counts channels as a number is left as it is, so that some graphs do not run.
    """
    import onnx

    gone = np.fromiter(removed, dtype=np.int64)
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    del cut.graph.value_info[:]
    stays = {key: ~np.isin(ids, gone) for key, ids in channels.identities.items()}
    biases: dict[str, NDArray[np.bool_]] = {}
    for node in cut.graph.node:
        made = stays.get(_makes(node)) if node.op_type in _OPERATORS else None
        group = next((each for each in node.attribute if each.name == "group"), None)
        if made is None:
            continue
        if len(node.input) > 2 and node.input[2]:
            biases[node.input[2]] = made
        if group is not None and group.i == len(made) > 1:
            group.i = int(made.sum())
    for tensor in cut.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        for dim, size in enumerate(tensor.dims):
            mask = stays.get((tensor.name, dim), biases.get(tensor.name) if values.ndim == 1 else None)
            if mask is not None and len(mask) == size:
                values = np.compress(mask, values, axis=dim)
        if list(values.shape) != list(tensor.dims):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    for entry in cut.graph.output:
        entry.type.tensor_type.ClearField("shape")
    return cut


def others(proto: Any, channels: Channels) -> Iterator[tuple[Ids, float]]:
    """Of every node that is no layer: the channels of its output, and elements for each of them.

    An output has the channels of the input that has as many; concatenated inputs follow each other.
    """
    shapes, held = shapes_of(proto.graph), dict[str, Ids]()
    weights = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        name = node.output[0]
        shape = shapes.get(name, ())
        if node.op_type in _OPERATORS and node.input[1] in weights:
            ids = channels.identities.get(_makes(node))
        else:
            ids = _carried(node, [held.get(each) for each in node.input], shape)
            if ids is not None and len(shape) > 1:
                yield ids, math.prod(shape) / len(ids)
        if ids is not None and len(shape) > 1 and len(ids) == shape[1]:
            held[name] = ids


def _carried(node: Any, given: Sequence[Ids | None], shape: tuple[int, ...]) -> Ids | None:
    known = [ids for ids in given if ids is not None]
    if len(shape) < 2 or not known:
        return None
    joined = np.concatenate(known)
    if len(known) == len(given) and len(known) > 1 and len(joined) == shape[1]:
        return joined
    return next((ids for ids in known if len(ids) == shape[1]), None)
