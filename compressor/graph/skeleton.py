"""A copy of a model that may be edited and run freely, without its data or with it."""

from typing import Any

import torch
from torch import Tensor, nn

from compressor.graph.copies import CONSTANTS, HAVE_CODE, attributes, copied


def skeleton(model: nn.Module, *, real: bool = False) -> nn.Module:
    """A copy of the model that may be edited and run freely: on the meta device, or with real data if `real`."""
    memo: dict[int, Any] = {}
    plain, others = [], 0
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if type(tensor) not in CONSTANTS and isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _blank(tensor, real)
        kind: Any = type(module)
        if isinstance(module, HAVE_CODE):
            others += 1
        else:  # whatever the class says about being made or copied
            memo[id(module)] = object.__new__(kind)
            plain.append(module)
    if others:  # they are copied with what they hold, which has to be whole by then
        plain.sort(key=lambda module: sum(1 for _ in module.modules()))
    for module in plain:
        vars(memo[id(module)]).update(attributes(module, memo))
    result: nn.Module = copied(model, memo)
    return result


def _blank(tensor: Tensor, real: bool) -> Tensor:
    blank = tensor.detach().clone() if real else torch.empty_like(tensor, device="meta")
    return nn.Parameter(blank, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank
