"""Carry out a plan on a model, its optimizer and its channels together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_leaves

from compressor.errors import ModelError
from compressor.graph.attributes import write_
from compressor.graph.channels import Channels, Place
from compressor.graph.neutral import uncollected
from compressor.graph.tensors import named_modules, named_tensors
from compressor.surgery.assign import assign_, check_no_reducer
from compressor.surgery.edits import Edit, Insert, Merge, Plan, Prune
from compressor.surgery.renumber import Renumbering
from compressor.surgery.slices import Layouts, Slices
from compressor.surgery.snapshot import Snapshot, all_or_nothing


@torch.inference_mode(False)
@torch.no_grad()
@uncollected()
def operate_(
    model: nn.Module,
    plan: Plan,
    channels: Channels,
    optimizer: Optimizer | None = None,
    followers: Sequence[nn.Module] = (),
) -> Channels:
    """Edit the model in place as the plan says; returns the channels as they stand afterwards.

    `followers` are copies of the model, such as an average of its weights, which are edited alike.

    Parameters keep their identity, hooks, `requires_grad`, dtype, device and memory format; gradients and what the
    optimizer keeps of a parameter are edited by the same map, newcomers' state starts at zero, state of other shapes
    starts again. Module attributes that count channels (`out_channels`, `groups`, ...) are kept true. To backpropagate
    an output that was computed before raises.

    Raises:
        ModelError: an edit names a frozen or unknown channel, or would leave a group empty, or
            DistributedDataParallel holds the model; nothing was changed.
    """
    _check(plan, channels)
    renumbering = Renumbering.of(plan, channels)
    updated = renumbering.apply(channels)
    sizes = zip(channels.sizes, updated.sizes, strict=True)
    changed = [now for size, now in sizes if len(size.ids) != len(now.ids)]
    work = []
    for each in (model, *followers):
        check_no_reducer(each.parameters())
        its_optimizer = optimizer if each is model else None
        states = {} if its_optimizer is None else its_optimizer.state
        modules = dict(named_modules(each))
        edits = _edited(named_tensors(each, modules.items()), plan, channels, renumbering, states)
        counts = [(modules[now.module], now.attribute, len(now.ids)) for now in changed]
        touched = [edit.tensor for edit in edits], {module for module, _, _ in counts}
        work.append((its_optimizer, edits, counts, Snapshot.of(each, its_optimizer, copies=False, only=touched)))
    with all_or_nothing(*(before for *_, before in work)):
        for its_optimizer, edits, counts, _ in work:
            for edit in edits:
                edit.carry_out_(its_optimizer)
            write_(counts)
            if its_optimizer is not None and edits:
                _forget_(its_optimizer)
    return updated


@dataclass(frozen=True)
class _Edited:
    """What one tensor and all that goes with it become."""

    tensor: Tensor
    data: Tensor
    grad: Tensor | None
    state: dict[str, Any] | None  # None: the optimizer has none, or forgets it

    def carry_out_(self, optimizer: Optimizer | None) -> None:
        self.tensor.grad = None
        assign_(self.tensor, self.data)
        self.tensor.grad = self.grad
        if optimizer is not None:
            optimizer.state.pop(self.tensor, None)
            if self.state is not None:
                optimizer.state[self.tensor] = self.state


def _edited(
    tensors: Mapping[str, Tensor], plan: Plan, channels: Channels, renumbering: Renumbering, states: Mapping[Any, Any]
) -> list[_Edited]:
    """Every tensor that the plan changes, as it will be; nothing is written to yet."""
    data = dict(tensors)
    _compensate_(data, plan, channels)
    layouts, touched, found = Layouts(renumbering), _touched(plan, channels), []
    for name, tensor in tensors.items():
        slices = [
            Slices(
                place.dim,
                place.role == "column",
                layouts.of(edits, channels.identities[name, place.dim], tensor.device),
            )
            for place, edits in touched.get(name, ())
        ]
        if not slices and data[name] is tensor:
            continue
        for cut in slices:
            data[name] = cut.apply(data[name], name)
        grad, state = tensor.grad, states.get(tensor)
        if slices and grad is not None:
            grad = _companion(grad, slices, tensor.shape, tensor.device)
        if slices and state is not None:
            state = _state(state, slices, tensor.shape, tensor.device)
        found.append(_Edited(tensor, _in_format_of(tensor, data[name]), grad, state))
    return found


def _companion(companion: Tensor, slices: Iterable[Slices], shape: torch.Size, device: torch.device) -> Tensor:
    """A gradient or a tensor of optimizer state after the edit of its parameter, of the given shape, on its device.

    A dimension of size 1 that the parameter has more of stays: factored moments have it. The tensor may be kept on
    another device than its parameter, and stays there.
    """
    if companion.layout != torch.strided:
        return _companion(companion.to_dense(), slices, shape, device).to_sparse(companion.sparse_dim())
    data = companion.detach().to(device)
    for cut in slices:
        if data.shape[cut.dim] == shape[cut.dim]:
            data = cut.apply(data, None)
    return _in_format_of(companion, data.to(companion.device))


def _state(
    state: Mapping[str, Any], slices: Iterable[Slices], shape: torch.Size, device: torch.device
) -> dict[str, Any] | None:
    """What an optimizer keeps of one parameter, after its edit; None where it keeps tensors of other dimensions."""
    result: dict[str, Any] = {}
    for key, value in state.items():
        tensors = [each for each in tree_leaves(value) if isinstance(each, Tensor) and each.numel() > 1]
        if tensors and not (isinstance(value, Tensor) and _fits(value.shape, shape)):
            return None
        result[key] = _companion(value, slices, shape, device) if tensors else value
    return result


def _fits(size: torch.Size, shape: torch.Size) -> bool:
    return len(size) == len(shape) and all(one in (1, whole) for one, whole in zip(size, shape, strict=True))


def _forget_(optimizer: Optimizer) -> None:
    """Make an optimizer that keeps all parameters in one flat vector start again."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        optimizer._numel_cache = None


def _in_format_of(before: Tensor, after: Tensor) -> Tensor:
    """The tensor in the memory format (channels first or last) of another with as many dimensions."""
    for ndim, last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if before.ndim == ndim and not before.is_contiguous() and before.is_contiguous(memory_format=last):
            return after.contiguous(memory_format=last)
    return after.contiguous()


def _touched(plan: Plan, channels: Channels) -> dict[str, list[tuple[Place, list[Edit]]]]:
    """The places that the plan's groups live in, by tensor, with the edits of these groups."""
    found: dict[str, dict[int, tuple[Place, list[Edit]]]] = {}
    for name, edits in _by_group(plan).items():
        for place in channels.group(name).places:
            found.setdefault(place.tensor, {}).setdefault(place.dim, (place, []))[1].extend(edits)
    return {tensor: [dims[dim] for dim in sorted(dims)] for tensor, dims in found.items()}


def _compensate_(data: dict[str, Tensor], plan: Plan, channels: Channels) -> None:
    """Make up for what is removed, in the layers that read it and in whatever follows them.

    A reader that loses channels of mean activation m shifts, on average, by its columns times m. A bias takes that
    shift up; without one, the running mean of the batch norm behind the reader does; with neither it stays.

    `data` holds the tensors by name: those that change are replaced in it, and are not written to.
    """
    for edit in plan.edits:
        if not isinstance(edit, Prune) or edit.means is None:
            continue
        for place in channels.group(edit.group).places:
            absorber = channels.absorbers.get(place.tensor)
            if place.role == "column" and absorber is not None:
                weight = data[place.tensor]
                where = channels.positions(place, edit.channels)  # (channels, occurrences)
                means = torch.tensor(edit.means, dtype=weight.dtype, device=weight.device)
                columns = weight.index_select(place.dim, torch.from_numpy(where.ravel()).to(weight.device))
                spread = means.repeat_interleave(where.shape[1])
                shift = torch.tensordot(columns.movedim(place.dim, 0).flatten(2).sum(2) if weight.ndim > 2
                                        else columns.movedim(place.dim, 0), spread, dims=([0], [0]))  # fmt: skip
                data[absorber.tensor] = data[absorber.tensor].add(shift, alpha=1 if absorber.kind == "bias" else -1)


def _by_group(plan: Plan) -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = {}
    for edit in plan.edits:
        found.setdefault(edit.group, []).append(edit)
    return found


def _check(plan: Plan, channels: Channels) -> None:
    for name, edits in _by_group(plan).items():
        group = channels.group(name)
        if group.frozen is not None:
            raise ModelError(f"{name} cannot be edited: {group.frozen}")
        if group.prune_only is not None and not all(isinstance(edit, Prune) for edit in edits):
            raise ModelError(f"{name} can only be pruned: {group.prune_only}")
        ids = [identity for edit in edits for identity in edit.channels]
        different = set(ids)
        if len(different) != len(ids) or not different.issubset(group.ids.tolist()):
            raise ModelError(f"a plan for {name} names a channel twice, or one that it does not have")
        gone = sum(
            len(edit.channels) if isinstance(edit, Prune) else isinstance(edit, Merge) - isinstance(edit, Insert)
            for edit in edits
        )
        if gone >= group.size:
            raise ModelError(f"a plan would leave {name} without channels")
