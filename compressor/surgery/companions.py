"""What goes with a parameter: its gradient, and what an optimizer keeps of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_leaves

from compressor.surgery.slices import Slices


def edited(companion: Tensor, slices: Iterable[Slices], shape: torch.Size, device: torch.device) -> Tensor:
    """A gradient or a tensor of optimizer state after the edit of its parameter, of the given shape, on its device.

    A dimension of size 1 that the parameter has more of stays: factored moments have it. The tensor may be kept on
    another device than its parameter, and stays there.
    """
    if companion.layout != torch.strided:
        return edited(companion.to_dense(), slices, shape, device).to_sparse(companion.sparse_dim())
    data = companion.detach().to(device)
    for cut in slices:
        if data.shape[cut.dim] == shape[cut.dim]:
            data = cut.apply(data, None)
    return in_format_of(companion, data.to(companion.device))


def edited_state(
    state: Mapping[str, Any], slices: Iterable[Slices], shape: torch.Size, device: torch.device
) -> dict[str, Any] | None:
    """What an optimizer keeps of one parameter, after its edit; None where it keeps tensors of other dimensions."""
    result: dict[str, Any] = {}
    for key, value in state.items():
        tensors = [each for each in tree_leaves(value) if isinstance(each, Tensor) and each.numel() > 1]
        if tensors and not (isinstance(value, Tensor) and _fits(value.shape, shape)):
            return None
        result[key] = edited(value, slices, shape, device) if tensors else value
    return result


def _fits(size: torch.Size, shape: torch.Size) -> bool:
    return len(size) == len(shape) and all(one in (1, whole) for one, whole in zip(size, shape, strict=True))


def forget_(optimizer: Optimizer) -> None:
    """Make an optimizer that keeps all parameters in one flat vector start again."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        optimizer._numel_cache = None


def in_format_of(before: Tensor, after: Tensor) -> Tensor:
    """The tensor in the memory format (channels first or last) of another with as many dimensions."""
    for ndim, last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if before.ndim == ndim and not before.is_contiguous() and before.is_contiguous(memory_format=last):
            return after.contiguous(memory_format=last)
    return after.contiguous()
