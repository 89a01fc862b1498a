"""Operators with weights -> torch's layers, so that all that looks for convolutions and norms finds them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.exporting.onnx_in.nodes import Built, Node, Shape, Untaken, Values, flipped
from compressor.loading.onnx_network import Operation


def _with(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """The layer with its parameters and buffers."""
    for name, tensor in tensors.items():
        held = None if tensor is None else tensor.contiguous()
        if name in layer._buffers:
            layer._buffers[name] = held
        else:
            setattr(layer, name, None if held is None else nn.Parameter(held))
    return layer


def _convolution(node: Node) -> Built:
    weight = node.tensor(1)
    kernel = list(weight.shape[2:])
    rank, group = len(kernel), int(node.attributes.get("group", 1))
    pads, transposed = node.pads(kernel), node.operator == "ConvTranspose"
    even = pads[:rank] == pads[rank:]
    given: dict[str, Any] = {
        "stride": tuple(node.strides(rank)), "padding": tuple(pads[:rank]) if even else 0,
        "dilation": tuple(node.dilations(rank)), "groups": group, "bias": node.has(2),
    }  # fmt: skip
    if transposed:
        if not even or "output_shape" in node.attributes:
            raise Untaken("it is padded on one side")
        kinds: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        given["output_padding"] = tuple(node.attributes.get("output_padding", [0] * rank))
        widths = weight.shape[0], weight.shape[1] * group
    else:
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        widths = weight.shape[1] * group, weight.shape[0]
    layer = _with(kinds[rank - 1](*widths, tuple(kernel), **given), weight=weight,
                  bias=node.tensor(2) if node.has(2) else None)  # fmt: skip
    if not even:
        pad: Any = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[rank - 1]
        layer = nn.Sequential(pad(tuple(flipped(pads)), 0.0), layer)
    return Built(layer, node.inputs[:1], tuple(node.inputs[1:]))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer; `weight` is (outputs, inputs)."""
    return _with(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight=weight, bias=bias)


def _gemm(node: Node) -> Built:
    if node.attributes.get("transA") or not node.is_constant(1):
        raise Untaken("it multiplies other than by constant weights from the right")
    weight = node.tensor(1) * float(node.attributes.get("alpha", 1.0))
    weight = weight if node.attributes.get("transB") else weight.T
    bias = node.tensor(2) * float(node.attributes.get("beta", 1.0)) if node.has(2) else None
    layer = _linear(weight, None if bias is None else bias.expand(1, len(weight))[0])
    return Built(layer, node.inputs[:1], tuple(node.inputs[1:]))


def _matmul(node: Node) -> Built:
    """By a constant matrix from the right it is a linear layer, with the addition of a vector that follows."""
    if not node.is_constant(1) or node.constant(1).ndim != 2:
        return Built(Operation("MatMul"), node.inputs)
    weight, result = node.tensor(1).T, node.proto.output[0]
    readers = node.values.readers.get(result, [])
    if len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = [name for name in readers[0].input if name != result] or [""]
        bias = None if other in node.values.varying else node.values.constants.get(other)
        if bias is not None and bias.shape == (len(weight),):
            layer = _linear(weight, torch.from_numpy(np.array(bias)))
            names = (node.inputs[1], other)
            return Built(layer, node.inputs[:1], names, list(readers[0].output), (id(readers[0]),))
    return Built(_linear(weight, None), node.inputs[:1], (node.inputs[1],))


def _batch_norm(node: Node) -> Built:
    if node.attributes.get("training_mode"):
        raise Untaken("it is in training mode: export the network in evaluation mode")
    kind: Any = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(node.shape()), nn.BatchNorm1d)
    momentum = 1 - node.attributes.get("momentum", 0.9)
    weight, bias, mean, variance = (node.tensor(place) for place in range(1, 5))
    layer = kind(len(mean), eps=node.attributes.get("epsilon", 1e-5), momentum=momentum)
    _with(layer, weight=weight, bias=bias, running_mean=mean, running_var=variance)
    return Built(_with(layer, num_batches_tracked=torch.tensor(0, device="cpu")), node.inputs[:1])


def _grouped(node: Node) -> Built | None:
    """The group norm that torch.onnx writes as a reshape, an instance norm of as many channels as groups, and a reshape
    back."""
    values, result = node.values, node.proto.output[0]
    source, readers = values.views.get(node.inputs[0]), values.readers.get(result, [])
    if node.operator != "InstanceNormalization" or source is None or [each.op_type for each in readers] != ["Reshape"]:
        return None
    before, groups = values.shapes[source], node.shape()[1]
    back = values.shapes[readers[0].output[0]] == before
    if (
        not back
        or len(node.shape()) != 3
        or before[1] % groups
        or set(node.constant(1)) != {1}
        or node.constant(2).any()
    ):
        return None
    covered, result, found = [readers[0]], readers[0].output[0], dict[str, Tensor]()
    for operator, name in (("Mul", "weight"), ("Add", "bias")):
        after = values.readers.get(result, [])
        given = (
            _by_channel(values, after[0], result, before) if [each.op_type for each in after] == [operator] else None
        )
        if given is None:
            break
        covered, result, found[name] = [*covered, after[0]], after[0].output[0], given
    if len(found) != 2:
        covered, result = covered[:1], readers[0].output[0]
    layer = nn.GroupNorm(groups, before[1], eps=node.attributes.get("epsilon", 1e-5), affine=len(found) == 2)
    return Built(
        _with(layer, **found) if len(found) == 2 else layer,
        [source],
        results=[result],
        covered=tuple(map(id, covered)),
    )


def _by_channel(values: Values, node: Any, result: str, shape: Shape) -> Tensor | None:
    """The other operand of a node, where it is a constant of one number a channel."""
    name = next((each for each in node.input if each != result), "")
    held = None if name in values.varying else values.constants.get(name)
    rank = len(shape) - 1  # without the batch
    fits = held is not None and held.size == shape[1] and held.ndim >= rank and held.shape[-rank] == shape[1]
    return torch.from_numpy(np.array(held)).flatten() if fits else None


def _normalised(node: Node) -> Built:
    """Over the last dimensions, over groups of channels, or over each channel."""
    grouped = _grouped(node)
    if grouped is not None:
        return grouped
    weight, bias = node.tensor(1), node.tensor(2) if node.has(2) else None
    eps = node.attributes.get("epsilon", 1e-5)
    if node.operator == "LayerNormalization":
        over = node.shape()[node.axis(-1) :]
        layer: nn.Module = nn.LayerNorm(over, eps=eps, bias=bias is not None)
        weight = weight.expand(over)
    elif node.operator == "GroupNormalization":
        if len(weight) != node.shape()[1]:
            raise Untaken("it scales groups and not channels, as before operator set 21")
        layer = nn.GroupNorm(int(node.attributes["num_groups"]), len(weight), eps=eps)
    else:
        kinds: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
        layer = kinds[len(node.shape()) - 3](len(weight), eps=eps, affine=True)
    return Built(_with(layer, weight=weight, bias=bias), node.inputs[:1])


LAYERS: dict[str, Callable[[Node], Built]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("LayerNormalization", "GroupNormalization", "InstanceNormalization"), _normalised),
}
