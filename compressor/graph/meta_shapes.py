"""Shapes of the commonest operators on the meta device.

There torch computes many shapes by rules written in Python, 50 times slower than a model's own code. Here is what these
operators give on common operands; what is uncommon about them is left to torch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class NotQuick(Exception):
    """The operands are not the common case: torch's own rule decides."""


_META = torch.device("meta")
_NOTHING = torch.empty(0, device=_META)


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    if not shape:
        return torch.empty((), dtype=x.dtype, device=_META)
    return torch.empty(*shape, dtype=x.dtype, device=_META)  # torch reads them twice as fast one by one


def _like(x: Tensor) -> Tensor:
    """What `torch.empty_like` gives, which takes 40 times as long on the meta device."""
    if x.is_contiguous():
        return _empty(x, x.shape)
    dense, strides = 1, x.stride()
    for stride, size in sorted((stride, size) for stride, size in zip(strides, x.shape, strict=True) if size != 1):
        if stride != dense:  # it is not one block of memory in some order
            return torch.empty_like(x, device=_META)
        dense *= size
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=_META)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, *rest: Any
) -> Tensor:
    transposed, output_padding, groups = rest
    images, given, *pixels = x.shape
    first, second, *kernel = weight.shape
    rank = len(pixels)
    if transposed and rank == len(kernel) and given != first:  # which torch checks on data only
        raise RuntimeError(f"a transposed convolution of {first} channels was given {given}")
    reads, makes = (first // groups, second * groups) if transposed else (second, first)
    fits = given == reads * groups and makes % groups == 0 and (bias is None or bias.shape == (makes,))
    if not fits or rank != len(kernel) or x.dtype != weight.dtype:
        raise NotQuick
    lists = [v if len(v) == rank else v * rank for v in (stride, padding, dilation, output_padding)]
    sizes = zip(pixels, kernel, *lists, strict=True)
    if transposed:
        spatial = [(n - 1) * step - 2 * pad + gap * (k - 1) + more + 1 for n, k, step, pad, gap, more in sizes]
    else:
        spatial = [(n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap, _ in sizes]
    if min(spatial) < 1:
        raise NotQuick
    return torch.empty(images, makes, *spatial, dtype=x.dtype, device=_META)


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
    training: bool, *_rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    channels = (x.shape[1],)
    for vector in (weight, bias, mean, variance):
        if vector is not None and vector.shape != channels:
            raise RuntimeError(f"batch norm over {channels[0]} channels was given a vector of {tuple(vector.shape)}")
    if training:
        return _like(x), _empty(x, channels), _empty(x, channels)
    return _like(x), _NOTHING.detach(), _NOTHING.detach()  # the batch's statistics, which are not taken


def same_type(x: Any, *rest: Any) -> Tensor:
    """The result of an element-wise operator that keeps the type of its operands."""
    if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
        raise NotQuick  # of whole numbers it may give others, as a sigmoid
    kind, whole = x.dtype, x.shape
    shape: tuple[int, ...] = whole
    for value in rest:
        if isinstance(value, Tensor):
            if value.dtype != kind:
                raise NotQuick
            if value.shape != whole:
                shape = _broadcast(shape, value.shape)
        elif type(value) is complex:
            raise NotQuick
    return _like(x) if shape == whole else _empty(x, shape)


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    result = list(longer)
    for at, size in enumerate(shorter, len(longer) - len(shorter)):
        if size != result[at]:
            if size != 1 and result[at] != 1:
                raise NotQuick
            result[at] = size if result[at] == 1 else result[at]
    return tuple(result)


def in_place(x: Tensor, *rest: Any) -> Tensor:
    if not x.is_meta or any(isinstance(value, Tensor) and value.shape != x.shape for value in rest):
        raise NotQuick
    return x


def concatenation(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    first = tensors[0]
    at = dim % first.ndim if first.ndim else 0
    shape = [*first.shape]
    total, own = 0, shape[at]
    for other in tensors:
        sizes = [*other.shape]
        if other.dtype != first.dtype or len(sizes) != len(shape):
            raise NotQuick
        total += sizes[at]
        sizes[at] = own
        if sizes != shape:
            raise NotQuick
    if not first.is_meta or (len(shape) in (4, 5) and not all(tensor.is_contiguous() for tensor in tensors)):
        raise NotQuick
    shape[at] = total
    return _empty(first, shape)


def mean(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    if not dims or not x.is_floating_point() or not x.is_meta:
        raise NotQuick
    gone = {dim % x.ndim for dim in dims}
    sizes = [(1 if dim in gone else size) for dim, size in enumerate(x.shape) if keepdim or dim not in gone]
    return _empty(x, sizes)


def affine(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    plain = x.ndim == weight.ndim == 2 and bias.dtype == x.dtype == weight.dtype
    if not plain or x.shape[1] != weight.shape[0] or bias.shape != (weight.shape[1],):
        raise NotQuick
    return _empty(x, (x.shape[0], weight.shape[1]))


def product(x: Tensor, other: Tensor) -> Tensor:
    if x.dtype != other.dtype or x.shape[0] != other.shape[0] or x.shape[2] != other.shape[1]:
        raise NotQuick
    return _empty(x, (*x.shape[:2], other.shape[2]))


def softmax(x: Tensor, _dim: int, other_type: Any = None) -> Tensor:
    if other_type:
        raise NotQuick
    return _empty(x, x.shape)


def resized(x: Tensor, size: Sequence[int], *_rest: Any) -> Tensor:
    if not x.is_contiguous() or not x.is_floating_point() or len(size) != x.ndim - 2 or min(size) < 1:
        raise NotQuick
    return _empty(x, (*x.shape[:2], *size))


def layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, _eps: float) -> Any:
    first, sizes = x.ndim - len(shape), tuple(shape)
    plain = x.dtype in _SAME_STATISTICS and x.shape[first:] == sizes
    if not plain or any(v is not None and v.shape != sizes for v in (weight, bias)):
        raise NotQuick
    saved = (*x.shape[:first], *(1 for _ in sizes))
    return _empty(x, x.shape), _empty(x, saved), _empty(x, saved)


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    images: int,
    channels: int,
    _pixels: int,
    groups: int,
    _: float,
) -> Any:
    plain = x.is_contiguous() and x.dtype in _SAME_STATISTICS and channels % groups == 0 and x.shape[1] == channels
    if not plain or any(v is not None and v.shape != (channels,) for v in (weight, bias)):
        raise NotQuick
    return _empty(x, x.shape), _empty(x, (images, groups)), _empty(x, (images, groups))


_SAME_STATISTICS = (torch.float32, torch.float64)  # norms of other types keep theirs in another one
