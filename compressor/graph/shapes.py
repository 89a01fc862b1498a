"""Run one operator on shapes alone (the meta device).

There torch computes many shapes by rules written in Python, 50 times slower than a model's own code. The commonest
operators have a rule of their own here; anything uncommon about their operands is left to torch.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from compressor.graph.values import Values
from compressor.limits import within_memory


def run_on_shapes(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values) -> Any:
    """What the operator gives; tensors that the user's code made elsewhere join the others on the meta device."""
    output = _shaped(func, args, kwargs, values)
    if not values.nothing_of(args):
        values.follow(func, args, kwargs, output)
    return output


def _shaped(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values) -> Any:
    rule = _quick_rule(func)
    if rule is not None and not kwargs:
        try:
            return rule(*args)
        except _NotQuick:
            pass
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        with within_memory():
            known = values.work_out(func, args, kwargs)
        if known is not None:  # a shape that depends on data, or the data themselves
            return known if _goes_to_cpu(func, kwargs) else values.on_meta(known)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(leaf.is_meta for leaf in leaves) or not any(leaf.is_meta for leaf in leaves):
            raise
        args, kwargs = tree_map(_on_meta, (args, kwargs))
        return func(*args, **kwargs)


def _goes_to_cpu(func: torch._ops.OpOverload, kwargs: dict[str, Any]) -> bool:
    return func is torch.ops.aten._to_copy.default and kwargs.get("device", _CPU) == _CPU


_CPU = torch.device("cpu")


@cache
def plain_name(func: torch._ops.OpOverload) -> str:
    """Without namespace, overload and the underscore of in-place forms: "convolution", "add", "view"."""
    name = func._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _on_meta(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf


class _NotQuick(Exception):
    """The operands are not the common case: torch's own rule decides."""


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _like(x: Tensor) -> Tensor:
    return _empty(x, x.shape) if x.is_contiguous() else torch.empty_like(x, device="meta")


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, _output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    if transposed and x.ndim == weight.ndim and x.shape[1] != weight.shape[0]:  # which torch checks on data only
        raise RuntimeError(f"a transposed convolution of {weight.shape[0]} channels was given {x.shape[1]}")
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    plain = not transposed and x.ndim == weight.ndim and x.dtype == weight.dtype and x.is_contiguous()
    if not plain or x.shape[1] != inputs or outputs % groups or (bias is not None and bias.shape != (outputs,)):
        raise _NotQuick
    rank = x.ndim - 2
    steps, pads, gaps = (values * rank if len(values) == 1 else values for values in (stride, padding, dilation))
    sizes = zip(x.shape[2:], weight.shape[2:], steps, pads, gaps, strict=True)
    spatial = [(size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in sizes]
    if min(spatial) < 1:
        raise _NotQuick
    return _empty(x, (x.shape[0], outputs, *spatial))


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *vectors, training = rest[:5]
    channels = x.shape[1]
    for vector in vectors:
        if vector is not None and vector.shape != (channels,):
            raise RuntimeError(f"batch norm over {channels} channels was given a vector of {tuple(vector.shape)}")
    saved = (channels if training else 0,)
    return _like(x), _empty(x, saved), _empty(x, saved)


def _elementwise(x: Any, *rest: Any) -> Tensor:
    """The result of an element-wise operator that keeps the type of its operands."""
    others = [value for value in rest if isinstance(value, Tensor)]
    if not isinstance(x, Tensor) or not x.is_meta or any(other.dtype != x.dtype for other in others):
        raise _NotQuick
    shape = tuple(x.shape)
    for other in others:
        if other.shape != x.shape:
            shape = _broadcast(shape, tuple(other.shape))
    return _like(x) if shape == x.shape else _empty(x, shape)


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    result = list(longer)
    for at, size in enumerate(shorter, len(longer) - len(shorter)):
        if size != result[at]:
            if size != 1 and result[at] != 1:
                raise _NotQuick
            result[at] = size if result[at] == 1 else result[at]
    return tuple(result)


def _in_place(x: Tensor, *rest: Any) -> Tensor:
    if not x.is_meta or any(isinstance(value, Tensor) and value.shape != x.shape for value in rest):
        raise _NotQuick
    return x


def _concatenation(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    first = tensors[0]
    at = dim % first.ndim if first.ndim else 0
    for other in tensors[1:]:
        same = first.is_meta and other.ndim == first.ndim and other.dtype == first.dtype
        if not same or any(d != at and a != b for d, (a, b) in enumerate(zip(first.shape, other.shape, strict=True))):
            raise _NotQuick
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise _NotQuick
    shape = list(first.shape)
    shape[at] = sum(tensor.shape[at] for tensor in tensors)
    return _empty(first, shape)


def _mean(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Tensor:
    if not dims or not x.is_floating_point() or not x.is_meta:
        raise _NotQuick
    gone = {dim % x.ndim for dim in dims}
    sizes = [(1 if dim in gone else size) for dim, size in enumerate(x.shape) if keepdim or dim not in gone]
    return _empty(x, sizes)


def _affine(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    plain = x.ndim == weight.ndim == 2 and bias.dtype == x.dtype == weight.dtype
    if not plain or x.shape[1] != weight.shape[0] or bias.shape != (weight.shape[1],):
        raise _NotQuick
    return _empty(x, (x.shape[0], weight.shape[1]))


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, _eps: float) -> Any:
    first, sizes = x.ndim - len(shape), tuple(shape)
    plain = x.is_contiguous() and x.dtype in _SAME_STATISTICS
    if not plain or x.shape[first:] != sizes or any(v is not None and v.shape != sizes for v in (weight, bias)):
        raise _NotQuick
    saved = (*x.shape[:first], *(1 for _ in sizes))
    return _empty(x, x.shape), _empty(x, saved), _empty(x, saved)


_SAME_STATISTICS = (torch.float32, torch.float64)  # norms of other types keep theirs in another one
_SAME_TYPE = "relu hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu mish add mul sub".split()  # noqa: SIM905
_OTHERS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.addmm.default: _affine,
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    torch.ops.aten.cat.default: _concatenation,
    torch.ops.aten.mean.dim: _mean,
}


@cache
def _quick_rule(func: torch._ops.OpOverload) -> Callable[..., Any] | None:
    if func in _OTHERS:
        return _OTHERS[func]
    if plain_name(func) not in _SAME_TYPE or func._overloadname not in ("default", "Tensor"):
        return None
    return _in_place if func._schema.is_mutable else _elementwise
