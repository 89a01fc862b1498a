"""The sizes in which an edited network differs from the architecture it came from, as plain data for checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compressor.errors import FileError, ModelError
from compressor.graph.attributes import counts_channels, integers, write_
from compressor.graph.tensors import named_tensors

_LARGEST = 2**31  # no dimension or attribute of a network reaches this
_MISFIT = "which the architecture does not have: the checkpoint is broken or of another architecture"


def describe(fresh: nn.Module, edited: nn.Module) -> dict[str, Any]:
    """What to change in `fresh`, a new build of the architecture, so that it takes the weights of `edited`.

    Returns `{"shapes": {tensor: [sizes]}, "attributes": {module: {path: integer}}, "tied":
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
    sizes = []
    for name, values in dict(structure.get("attributes", {})).items():
        held = dict(integers(modules[name])) if name in modules else {}
        for path, value in dict(values).items():
            if path not in held or not _fits([value]):
                raise FileError(f"the checkpoint sets {name}.{path} to {value!r}, {_MISFIT}")
            sizes.append((modules[name], path, value))
    write_(sizes)


def _tied(module: nn.Module) -> dict[str, str]:
    """Every further name of a parameter or buffer -> its first."""
    first: dict[int, str] = {}
    names = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: first[id(each)] for name, each in names if first.setdefault(id(each), name) != name}


def counts(module: nn.Module) -> Iterator[tuple[str, int]]:
    """A module's own integers, by their paths: its sizes are among them. Private ones, and what stands in dicts, only
    where they are called as counts of channels: a run may leave others behind.
    """
    for path, value in integers(module):
        name, _, entry = path.partition(".")
        if counts_channels(path) or not (name.startswith("_") or (entry and not entry.isdigit())):
            yield path, value


def _fits(sizes: object) -> bool:
    return isinstance(sizes, list) and all(type(size) is int and 0 <= size < _LARGEST for size in sizes)
