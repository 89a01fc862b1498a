"""A copy of a model that may be edited and run freely, without its data or with it."""

import copy
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def skeleton(model: nn.Module, *, real: bool = False) -> nn.Module:
    """A copy of the model that may be edited and run freely: on the meta device, or with real data if `real`."""
    memo: dict[int, Any] = {}
    plain, others = [], 0
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if type(tensor) not in CONSTANTS and isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _blank(tensor, real)
        kind: Any = type(module)
        if _copies_plainly(kind):
            memo[id(module)] = kind.__new__(kind)
            plain.append(module)
        else:
            others += 1
    if others:  # they are copied with what they hold, which has to be whole by then
        plain.sort(key=lambda module: sum(1 for _ in module.modules()))
    for module in plain:
        vars(memo[id(module)]).update({key: _copied(value, memo) for key, value in vars(module).items()})
    return copy.deepcopy(model, memo)


@cache
def _copies_plainly(kind: Any) -> bool:
    """Whether a copy of a module is no more than copies of its attributes, which deepcopy takes long for.

    What a convolution does on being restored only completes files of older versions of torch.
    """
    asked = ("__setstate__", "__getstate__", "__reduce__", "__reduce_ex__", "__new__")
    plain = (nn.Module, nn.modules.conv._ConvNd)
    return not hasattr(kind, "__deepcopy__") and all(
        getattr(kind, name, None) in [getattr(known, name, None) for known in plain] for name in asked
    )


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in CONSTANTS:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind in _HOLDERS:
        if not value:
            return kind()
        if kind is dict and all(id(held) in memo or held is None for held in value.values()):  # parameters, submodules
            return {key: memo.get(id(held)) for key, held in value.items()}
    return copy.deepcopy(value, memo)


CONSTANTS = frozenset({int, float, str, bool, type(None), torch.dtype, torch.device})
_HOLDERS = frozenset({dict, OrderedDict, set})


def _blank(tensor: Tensor, real: bool) -> Tensor:
    blank = tensor.detach().clone() if real else torch.empty_like(tensor, device="meta")
    return nn.Parameter(blank, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank
