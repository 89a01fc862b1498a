"""Replace blocks of a network by less, in place, and do it again on a new build of the network."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError, misfit
from compressor.graph.blocks import KERNELS, find_blocks
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import device_of, named_tensors
from compressor.surgery.edits import BlockEdit, Bypass, Fold

KIND = "blocks"  # of its entry in a checkpoint


@torch.inference_mode(False)
@torch.no_grad()
def replace_blocks_(model: nn.Module, edits: Sequence[BlockEdit], example: Tensor) -> None:
    """Carry out the edits; layers that stay are the model's own objects, under their names.

    Raises:
        ModelError: an edit names a module that is no such block; nothing was changed.
    """
    _put_(model, edits, example, None)


class Gate(nn.Module):
    """Lets pass what a branch makes, or zeros."""

    open: Tensor

    def __init__(self, open: bool) -> None:
        super().__init__()
        self.register_buffer("open", torch.tensor(float(open)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.open


def gated(model: nn.Module, edits: Sequence[BlockEdit], example: Tensor) -> tuple[nn.Module, nn.Module, frozenset[str]]:
    """Two networks of the same operators: the model as it is, and what the edits make of it, in which their blocks keep
    their branches behind closed gates; and the names of all that differs.
    """
    whole, masked = (skeleton(model, real=True) for _ in range(2))
    plain = [Fold(edit.group, edit.kernel, "") if isinstance(edit, Fold) else edit for edit in edits]
    with torch.no_grad():
        _put_(whole, plain, example, True)
        _put_(masked, edits, example, False)
    one, other = named_tensors(whole), named_tensors(masked)
    return whole, masked, frozenset(name for name, tensor in one.items() if not torch.equal(tensor, other[name]))


def _put_(model: nn.Module, edits: Sequence[BlockEdit], example: Tensor, open: bool | None) -> None:
    """Replace blocks, or put their branches behind gates."""
    found = find_blocks(model, example).found
    made: dict[str, nn.Module] = {}
    for edit in edits:
        block = found.get(edit.group)
        convolution = None if block is None or isinstance(edit, Bypass) else block.convolution(edit.kernel)
        stands = convolution is not None if isinstance(edit, Fold) else block is not None and block.shortcut is not None
        if block is None or not stands or edit.group in made:
            raise ModelError(f"{edit.group} is no block of the network that a {edit.kind} could replace")
        if isinstance(edit, Fold) and edit.values is not None and convolution is not None:
            edit.values.put_(convolution)
        gate = None if open is None else Gate(open).to(example)
        made[edit.group] = block.module(model, convolution, gate)
    for name, module in made.items():
        parent, _, leaf = name.rpartition(".")
        before = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, module.train(before.training))


def step_of(edits: Sequence[BlockEdit], example: Tensor) -> dict[str, Any]:
    """What a checkpoint has to know to do this again on a new build of the network (see `rebuild`)."""
    rows = [[edit.group, edit.kernel if isinstance(edit, Fold) else 0] for edit in edits]
    return {"kind": KIND, "input_shape": list(example.shape[1:]), "edits": rows}


def rebuild(module: nn.Module, step: Mapping[str, Any]) -> nn.Module:
    """The network that `step_of` described, of a new build; the weights of new convolutions are still to be loaded.

    Raises:
        FileError: the step does not fit the network.
    """
    with misfit("blocks do"):
        rows = [(str(name), int(kernel)) for name, kernel in step["edits"]]
        if not {kernel for _, kernel in rows} <= {0, *KERNELS}:
            raise ValueError("its convolutions have other sizes")
        example = torch.zeros(1, *map(int, step["input_shape"]), device=device_of(module))
        edits = [Fold(name, kernel, "") if kernel else Bypass(name, "") for name, kernel in rows]
        replace_blocks_(module, edits, example)
    return module
