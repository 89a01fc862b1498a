"""What a model's code can read besides the values of its weights: two models of equal signature are the same graph."""

import functools
import types
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.layout, torch.Size,
          torch.memory_format, types.BuiltinFunctionType, torch._ops.OpOverload)  # fmt: skip
_TENSORS = ("_parameters", "_buffers", "_modules")


class _Opaque(Exception):
    """Something that cannot be compared."""


def signature(model: nn.Module) -> Hashable | None:
    """Classes, attributes, and the shapes of all parameters and buffers, ties among them included; None where a module
    holds anything that may differ unseen: a tensor that is no buffer, an object of a class of its own, a closure.
    """
    numbers: dict[int, int] = {}  # modules and tensors, in the order in which they are met
    try:
        return tuple(
            (name, numbers.setdefault(id(module), len(numbers)), type(module), *_held(module, numbers))
            for name, module in model.named_modules(remove_duplicate=False)
        )
    except _Opaque:
        return None


def _held(module: nn.Module, numbers: dict[int, int]) -> Iterator[Hashable]:
    for name, value in sorted(vars(module).items()):
        yield name
        if name == "_modules":
            yield tuple(value)
        elif name in _TENSORS:
            yield tuple((each, _tensor(tensor, numbers)) for each, tensor in value.items())
        else:
            yield _plain(value)


def _tensor(tensor: Tensor | None, numbers: dict[int, int]) -> Hashable:
    if tensor is None:
        return None
    number = numbers.setdefault(id(tensor), len(numbers))
    return number, type(tensor), tuple(tensor.shape), tensor.dtype, tensor.device, tensor.layout, tensor.requires_grad


def _plain(value: Any) -> Hashable:
    """The same as something that can be compared and kept. Raises _Opaque."""
    if isinstance(value, types.FunctionType) and value.__closure__ is None:
        return value
    if isinstance(value, functools.partial):
        return functools.partial, _plain(value.func), _plain(value.args), _plain(value.keywords)
    if type(value) in (list, tuple):
        return type(value), tuple(_plain(each) for each in value)
    if isinstance(value, Mapping):
        return type(value), tuple((_plain(key), _plain(each)) for key, each in value.items())
    if type(value) in (set, frozenset):
        return type(value), frozenset(_plain(each) for each in value)
    if isinstance(value, float | complex):
        return type(value), repr(value)  # one that is no number differs from itself
    if isinstance(value, _PLAIN):
        return type(value), value
    raise _Opaque
