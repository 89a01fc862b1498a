"""The sizes in which an edited network differs from the architecture it came from, as plain data for checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compressor.errors import FileError, ModelError
from compressor.graph.tensors import named_tensors

_LARGEST = 2**31  # no dimension or attribute of a network reaches this
_MISFIT = "which the architecture does not have: the checkpoint is broken or of another architecture"


def describe(fresh: nn.Module, edited: nn.Module) -> dict[str, Any]:
    """What to change in `fresh`, a new build of the architecture, so that it takes the weights of `edited`.

    Returns `{"shapes": {tensor: [sizes]}, "attributes": {module: {attribute: integer or list of them}}, "tied":
    {tensor: the first name of the tensor that it is}}`; tensors that are one in `fresh` as well are not in the last.

    Raises:
        ModelError: tensors that are one in `fresh` are not one in `edited`.
    """
    before, after = named_tensors(fresh), named_tensors(edited)
    shapes = {
        name: list(tensor.shape)
        for name, tensor in after.items()
        if name in before and before[name].shape != tensor.shape
    }
    attributes: dict[str, dict[str, Any]] = {}
    ours = dict(edited.named_modules())
    for name, module in fresh.named_modules():
        if name in ours:  # what a new build does not have is left over from a run
            held = dict(counts(module))
            changed = {key: value for key, value in counts(ours[name]) if held.get(key, value) != value}
            if changed:
                attributes[name] = changed
    before_tied, tied = _tied(fresh), _tied(edited)
    for name, first in before_tied.items():
        if tied.get(name, first) != first or (name in after and first in after):
            raise ModelError(f"{name} and {first} are one tensor in the architecture, and two in the network")
    new = {name: first for name, first in tied.items() if name not in before_tied and {name, first} <= before.keys()}
    return {"shapes": shapes, "attributes": attributes, "tied": new}


def apply_(fresh: nn.Module, structure: Mapping[str, Any]) -> None:
    """Resize a new build of the architecture in place; the resized tensors are empty until weights are loaded.

    Raises:
        FileError: the structure does not fit the architecture.
    """
    tensors, modules = named_tensors(fresh), dict(fresh.named_modules())
    for name, first in dict(structure.get("tied", {})).items():
        if name not in tensors or first not in tensors or type(tensors[name]) is not type(tensors[first]):
            raise FileError(f"the checkpoint ties {name!r} to {first!r}, {_MISFIT}")
        path, _, leaf = name.rpartition(".")
        setattr(modules[path], leaf, tensors[first])
    tensors = named_tensors(fresh)
    for name, shape in dict(structure.get("shapes", {})).items():
        if name not in tensors or not _fits(shape) or len(shape) != tensors[name].ndim:
            raise FileError(f"the checkpoint resizes {name!r} to {shape!r}, {_MISFIT}")
        tensors[name].data = torch.empty(shape, dtype=tensors[name].dtype, device=tensors[name].device)
    for name, values in dict(structure.get("attributes", {})).items():
        for key, value in dict(values).items():
            held = vars(modules[name]).get(key) if name in modules else None
            entries = value if isinstance(value, list) else [value]
            if not _fits(entries) or _plain(held) is None or isinstance(held, int) != isinstance(value, int):
                raise FileError(f"the checkpoint sets {name}.{key} to {value!r}, {_MISFIT}")
            setattr(modules[name], key, tuple(value) if isinstance(held, tuple) else value)


def _tied(module: nn.Module) -> dict[str, str]:
    """Every further name of a parameter or buffer -> its first."""
    first: dict[int, str] = {}
    names = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: first[id(each)] for name, each in names if first.setdefault(id(each), name) != name}


def counts(module: nn.Module) -> Iterator[tuple[str, int | list[int]]]:
    """A module's own attributes that hold an integer, or several as a list: its sizes are among them."""
    for key, held in vars(module).items():
        value = _plain(held)
        if value is not None and not key.startswith("_"):
            yield key, value


def _plain(held: object) -> int | list[int] | None:
    """An integer, or a tuple or list of them as a list; None for anything else."""
    if type(held) is int:
        return held
    if type(held) in (tuple, list) and held and all(type(entry) is int for entry in held):  # type: ignore[attr-defined]
        return list(held)  # type: ignore[call-overload, no-any-return]
    return None


def _fits(sizes: object) -> bool:
    return isinstance(sizes, list) and all(type(size) is int and 0 <= size < _LARGEST for size in sizes)
