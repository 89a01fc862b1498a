"""Carry out a plan on a model, its optimizer and its channels together."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.errors import ModelError
from compressor.graph.channels import Channels, Place
from compressor.graph.probe import write_size
from compressor.graph.tensors import named_tensors
from compressor.surgery.compensation import compensate_
from compressor.surgery.edits import Edit, Insert, Merge, Plan, Prune
from compressor.surgery.renumber import Renumbering
from compressor.surgery.slices import Layouts, Slices


@torch.no_grad()
def operate_(model: nn.Module, plan: Plan, channels: Channels, optimizer: Optimizer | None = None) -> Channels:
    """Edit the model in place as the plan says; returns the channels as they stand afterwards.

    Parameters keep their identity, `requires_grad`, dtype, device and memory format; gradients and optimizer state
    of a parameter's shape are edited by the same map, newcomers' state starts at zero. Module attributes that count
    channels (`out_channels`, `groups`, ...) are kept true.

    Raises:
        ModelError: an edit names a frozen or unknown channel, or would leave a group empty; nothing was changed.
    """
    _check(plan, channels)
    tensors = named_tensors(model)
    compensate_(tensors, plan, channels)
    renumbering = Renumbering.of(plan, channels)
    layouts = Layouts(renumbering)
    for name, dims in _touched(plan, channels).items():
        tensor = tensors[name]
        slices = [
            Slices(
                place.dim,
                place.role == "column",
                layouts.of(edits, channels.identities[name, place.dim], tensor.device),
            )
            for place, edits in dims
        ]
        _replace_(tensor, name, slices, optimizer)
    updated = renumbering.apply(channels)
    modules = dict(model.named_modules())
    for before, after in zip(channels.sizes, updated.sizes, strict=True):
        if len(before.ids) != len(after.ids):
            write_size(modules[after.module], after, len(after.ids))
    return updated


def _touched(plan: Plan, channels: Channels) -> dict[str, list[tuple[Place, list[Edit]]]]:
    """The places that the plan's groups live in, by tensor, with the edits of these groups."""
    found: dict[str, dict[int, tuple[Place, list[Edit]]]] = {}
    for name, edits in _by_group(plan).items():
        for place in channels.group(name).places:
            found.setdefault(place.tensor, {}).setdefault(place.dim, (place, []))[1].extend(edits)
    return {tensor: [dims[dim] for dim in sorted(dims)] for tensor, dims in found.items()}


def _by_group(plan: Plan) -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = {}
    for edit in plan.edits:
        found.setdefault(edit.group, []).append(edit)
    return found


def _replace_(tensor: Tensor, name: str, slices: Iterable[Slices], optimizer: Optimizer | None) -> None:
    """Edit a tensor, its gradient and its optimizer state along each of its touched dimensions."""
    shape = tensor.shape
    companions = list(_companions(tensor, optimizer))
    gradient, tensor.grad = tensor.grad, None
    data = tensor.data
    for cut in slices:
        data = cut.apply(data, name)
    tensor.data = _in_format_of(tensor.data, data)
    if gradient is not None:
        tensor.grad = _edited(gradient, slices, tensor.device)
    for state, key in companions:
        if state[key].shape == shape:
            state[key] = _edited(state[key], slices, tensor.device)


def _edited(companion: Tensor, slices: Iterable[Slices], device: torch.device) -> Tensor:
    """Edited where the parameter is, since the slices are; optimizer state may be kept elsewhere, and stays there."""
    data = companion.to(device)
    for cut in slices:
        data = cut.apply(data, None)
    return _in_format_of(companion, data.to(companion.device))


def _in_format_of(before: Tensor, after: Tensor) -> Tensor:
    last = before.ndim == 4 and not before.is_contiguous() and before.is_contiguous(memory_format=torch.channels_last)
    return after.contiguous(memory_format=torch.channels_last) if last else after.contiguous()


def _companions(tensor: Tensor, optimizer: Optimizer | None) -> Iterator[tuple[dict[str, Tensor], str]]:
    if optimizer is None or tensor not in optimizer.state:
        return
    state = optimizer.state[tensor]
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield state, key


def _check(plan: Plan, channels: Channels) -> None:
    for name, edits in _by_group(plan).items():
        group = channels.group(name)
        if group.frozen is not None:
            raise ModelError(f"{name} cannot be edited: {group.frozen}")
        if group.prune_only is not None and not all(isinstance(edit, Prune) for edit in edits):
            raise ModelError(f"{name} can only be pruned: {group.prune_only}")
        ids = [identity for edit in edits for identity in edit.channels]
        if len(set(ids)) != len(ids) or not set(ids) <= set(group.ids.tolist()):
            raise ModelError(f"a plan for {name} names a channel twice, or one that it does not have")
        gone = sum(
            len(edit.channels) if isinstance(edit, Prune) else isinstance(edit, Merge) - isinstance(edit, Insert)
            for edit in edits
        )
        if gone >= group.size:
            raise ModelError(f"a plan would leave {name} without channels")
