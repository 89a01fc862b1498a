"""The network of an ONNX graph: ordinary torch layers and functions, run in the graph's order.

Both classes hold plain values besides their layers, so that a checkpoint can say how they are built (loading.networks);
an operation names its function by ONNX's operator, and only those of `FUNCTIONS` run. Sizes are computed from what
comes in, as in code by hand, so that they follow when channels go: `exporting.onnx_in` finds out how.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Sizes = Sequence[Any]  # of a reshape; see `_reshape`


class Operation(nn.Module):
    """An operator of ONNX without weights of its own."""

    def __init__(self, operator: str, **arguments: Any) -> None:
        super().__init__()
        self.operator, self.arguments = operator, arguments

    def forward(self, *tensors: Tensor) -> Tensor | Sequence[Tensor]:
        """What the operator gives for the tensors."""
        result: Tensor | Sequence[Tensor] = FUNCTIONS[self.operator](*tensors, **self.arguments)
        return result

    def extra_repr(self) -> str:
        """The operator and its arguments."""
        return ", ".join([self.operator, *(f"{key}={value}" for key, value in self.arguments.items())])


class OnnxNetwork(nn.Module):
    """The layers of a graph, called in its order: (batch, channels, height, width) -> the graph's outputs.

    `nodes` holds for each call the layer's name, the names of the values that go in (a result, or a tensor of the
    network's own), those of its results, and those that nothing reads any more.
    """

    def __init__(self, image: str, outputs: Sequence[str], nodes: Sequence[Sequence[Any]]) -> None:
        super().__init__()
        self.image, self.outputs, self.nodes = image, list(outputs), [list(node) for node in nodes]

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer of the network's own; nothing else is looked up for a name, which a file may hold."""
        held: Mapping[str, Any] = self._parameters if name in self._parameters else self._buffers
        found: Tensor = held[name]
        return found

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's output, or all where it has several."""
        values, layers = {self.image: images}, dict[str, Any](self._modules)
        for layer, sources, results, spent in self.nodes:
            made = layers[layer](*(values[name] if name in values else self.tensor(name) for name in sources))
            values.update(zip(results, (made,) if isinstance(made, Tensor) else made))
            for name in spent:
                del values[name]
        found = tuple(values[name] for name in self.outputs)
        return found[0] if len(found) == 1 else found


def lacks_norms(module: nn.Module) -> bool:
    """Whether a network came out of an ONNX file in which no norm is left: exporters fold batch norm, and with the
    weights that this gives gradients are larger.
    """
    layers = list(module.modules())
    return any(isinstance(each, OnnxNetwork) for each in layers) and not any(
        isinstance(each, _NORMS) for each in layers
    )


_NORMS = nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm


def _reshape(x: Tensor, sizes: Sizes) -> Tensor:
    """Each size is a number, -1, or `[dimensions, divisor]`: the product of what `x` has there, divided."""
    computed = [
        size if isinstance(size, int) else math.prod(x.shape[dim] for dim in size[0]) // size[1] for size in sizes
    ]
    return x.reshape(computed)


def _expand(x: Tensor, like: Tensor | None = None, *, sizes: Sizes) -> Tensor:
    """To the sizes; -1 stays, and with `like` the first is its batch."""
    return x.expand(sizes if like is None else [like.shape[0], *sizes[1:]])


def _slice(x: Tensor, slices: Sequence[Sequence[Any]]) -> Tensor:
    """Each slice is dimension, start, end and step."""
    whole = [slice(None)] * x.dim()
    for dim, start, end, step in slices:
        whole[dim] = slice(start, end, step)
    return x[tuple(whole)]


def _part(x: Tensor, dim: int, parts: int, index: int) -> Tensor:
    """One of the equal parts."""
    return x.chunk(parts, dim)[index]


def _gather(x: Tensor, index: Tensor, dim: int) -> Tensor:
    found: Tensor = x.index_select(dim, index.flatten()).unflatten(dim, index.shape)
    return found


def _padded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    return functional.pad(x, list(pads), value=value) if any(pads) else x


def _max_pool(x: Tensor, pads: Sequence[int], **window: Any) -> Tensor:
    pool: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.dim() - 3]
    found: Tensor = pool(_padded(x, pads, -math.inf), **window)
    return found


def _average_pool(x: Tensor, pads: Sequence[int], **window: Any) -> Tensor:
    pool: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.dim() - 3]
    found: Tensor = pool(_padded(x, pads, 0.0), **window)
    return found


def _global(pool: str, x: Tensor) -> Tensor:
    result: Tensor = getattr(functional, f"adaptive_{pool}_pool{x.dim() - 2}d")(x, 1)
    return result


def _depth_to_space(x: Tensor, block: int, mode: str) -> Tensor:
    if mode == "CRD":
        return functional.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, block, block, channels // block**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * block, width * block)


def _space_to_depth(x: Tensor, block: int) -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, channels * block**2, height // block, width // block)


def _softmax(x: Tensor, dim: int, end: int) -> Tensor:
    """Over dimensions `dim` to `end` as one, as before operator set 13."""
    return x.flatten(dim, end).softmax(dim).reshape(x.shape) if end != dim else x.softmax(dim)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    usual = abs(alpha - 1 / 6) < 1e-6 and beta == 0.5
    return functional.hardsigmoid(x) if usual else (alpha * x + beta).clamp(0, 1)


def _cast(x: Tensor, dtype: str) -> Tensor:
    """Floating-point numbers stay of their precision, whatever type of them is asked for."""
    wanted: torch.dtype = getattr(torch, dtype)
    return x if x.is_floating_point() and wanted.is_floating_point else x.to(wanted)


def _reduced(how: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Over one dimension after the other, the last one first, for those that torch reduces one at a time."""

    def over(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
        for dim in sorted(dims, reverse=True):
            x = how(x, dim, keepdim=keepdim)
        return x

    return over


def _over(how: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, dims, keepdim: how(x, tuple(dims), keepdim=keepdim)


def _folded(how: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: functools.reduce(how, tensors)


def _divided(left: Tensor, right: Tensor) -> Tensor:
    whole = not left.is_floating_point() and not right.is_floating_point()
    return torch.div(left, right, rounding_mode="trunc" if whole else None)


def _mean(*tensors: Tensor) -> Tensor:
    return _folded(torch.add)(*tensors) / len(tensors)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return x.clamp(min=0) + slope * x.clamp(max=0)


def _top(x: Tensor, dim: int, count: int, largest: bool) -> tuple[Tensor, Tensor]:
    values, indices = x.topk(count, dim, largest)
    return values, indices


# ONNX's operator -> what computes it; arguments as `exporting.onnx_in` reads them.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "ArgMax": torch.argmax,
    "ArgMin": torch.argmin,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Ceil": torch.ceil,
    "Celu": functional.celu,
    "Clip": torch.clamp,
    "Concat": lambda *tensors, dim: torch.cat(tensors, dim),
    "Cos": torch.cos,
    "CumSum": torch.cumsum,
    "DepthToSpace": _depth_to_space,
    "Div": _divided,
    "Einsum": lambda *tensors, equation: torch.einsum(equation, *tensors),
    "Elu": functional.elu,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": _expand,
    "Floor": torch.floor,
    "Gather": _gather,
    "GatherElements": lambda x, index, dim: x.gather(dim, index),
    "Gelu": functional.gelu,
    "GlobalAveragePool": functools.partial(_global, "avg"),
    "GlobalMaxPool": functools.partial(_global, "max"),
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": functional.hardswish,
    "LRN": functional.local_response_norm,
    "LeakyRelu": functional.leaky_relu,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "LogSoftmax": torch.log_softmax,
    "MatMul": torch.matmul,
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Min": _folded(torch.minimum),
    "Mish": functional.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": _prelu,
    "Pad": functional.pad,
    "Part": _part,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "ReduceL1": _over(lambda x, dims, keepdim: x.abs().sum(dims, keepdim=keepdim)),
    "ReduceL2": _over(lambda x, dims, keepdim: torch.linalg.vector_norm(x, dim=dims, keepdim=keepdim)),
    "ReduceLogSumExp": _over(torch.logsumexp),
    "ReduceMax": _over(torch.amax),
    "ReduceMean": _over(torch.mean),
    "ReduceMin": _over(torch.amin),
    "ReduceProd": _reduced(torch.prod),
    "ReduceSum": _over(torch.sum),
    "ReduceSumSquare": _over(lambda x, dims, keepdim: x.square().sum(dims, keepdim=keepdim)),
    "Relu": functional.relu,
    "Reshape": _reshape,
    "Resize": functional.interpolate,
    "Round": torch.round,
    "Select": torch.select,
    "Selu": functional.selu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "SpaceToDepth": _space_to_depth,
    "Split": lambda x, sizes, dim: x.split(list(sizes), dim),
    "SplitEqual": lambda x, parts, dim: x.chunk(parts, dim),
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Sum": _folded(torch.add),
    "Swish": functional.silu,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Tile": lambda x, repeats: x.repeat(*repeats),
    "TopK": _top,
    "Transpose": lambda x, dims: x.permute(*dims),
    "Where": torch.where,
    "Xor": torch.logical_xor,
}
