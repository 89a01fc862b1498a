"""compressor's own checkpoint of a model: one safetensors file, whose metadata say how its network is built.

The file's tensors are those of the state dict, under their names there. The network is an architecture (`arch`) or a
tree of published layers (`blueprint`), what was made of it (`steps`), and the sizes that surgery changed since
(`structure`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor, nn

from compressor.errors import FileError, ModelError
from compressor.kinds import fits
from compressor.loading.arch import FORM, Arch
from compressor.loading.container import Contents, Packer, reader, with_strides, write
from compressor.loading.plain import check_shape, decode, encode, to_plain
from compressor.text import first_line

KIND = "compressor"  # of the file, and the name under which the metadata have the header
VERSION = 1

_LONGEST_ARGUMENTS = 4000  # characters
_MOST_STEPS = 32  # transformations of one network after another


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the fields of its header, and its tensors. Either `arch` or `blueprint` is None."""

    arch: Arch | None
    blueprint: dict[str, Any] | None  # see loading.blueprint
    steps: tuple[dict[str, Any], ...]  # what was made of the network, each with its kind; see loading.steps
    structure: dict[str, Any]  # sizes that were edited since
    input_shape: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    preparation: dict[str, Any]  # how images are made ready for the network
    history: tuple[str, ...]
    measurements: dict[str, Any]
    extra_state: dict[str, Any]  # what layers keep besides tensors, by its name in the state dict
    state: dict[str, Tensor]  # of the state dict, and the buffers that are not in it

    @property
    def built_from(self) -> str:
        """The network's definition, in words."""
        return "its layers" if self.arch is None else str(self.arch)


# What the header says of the tensors: names that stand for another's tensor, and strides of those not contiguous.
_OF_TENSORS = {"tied": dict[str, str], "strides": dict[str, Any]}


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, whole or not at all.

    Raises UsageError for a value that is not plain, ModelError for a tensor that a file cannot hold, FileError where
    the file cannot be written.
    """
    packer, tied, strides = Packer(), {}, {}
    for name, tensor in checkpoint.state.items():
        first, order = packer.add(tensor, name)
        if first != name:
            tied[name] = first
        elif order is not None:
            strides[name] = order
    header: dict[str, Any] = {"version": VERSION, "tied": tied, "strides": strides}
    for field in fields(checkpoint):
        value = getattr(checkpoint, field.name)
        if field.name == "extra_state":
            header[field.name] = Packer(packer.tensors).pack(value, "extra_state")
        elif isinstance(value, Arch):
            arguments = encode(dict(value.arguments), "arguments")
            header[field.name] = {"name": value.name, "arguments": arguments, "sha256": value.sha256}
        elif field.name != "state":
            plain = to_plain(value, field.name)
            header[field.name] = encode(list(plain) if isinstance(plain, tuple) else plain, field.name)
    write(path, KIND, header, packer.tensors)


def extra_state(module: nn.Module) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What layers keep in the state dict besides tensors, as far as a file can hold it, and a note on all else."""
    kept, notes = {}, []
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            continue
        try:
            Packer().pack(value, name)
            kept[name] = value
        except (TypeError, ModelError) as error:
            notes.append(f"left out of the checkpoint: {error}; the layer begins without it when the file is opened")
    return kept, tuple(notes)


def read_checkpoint(contents: Contents) -> Checkpoint:
    """Check the header against the schema, which is the fields' types, and take the tensors.

    Raises FileError where a field is missing, unknown or of another type, or the version is newer.
    """
    header = contents.plain(KIND)
    version = header.get("version") if isinstance(header, dict) else None
    if type(version) is not int or not 0 < version <= VERSION:
        of = f"version {version}" if type(version) is int and abs(version) < 1000 else "another version"
        raise FileError(f"{contents.path} is a checkpoint of {of}, this compressor reads {VERSION}: upgrade it")
    try:
        return _checked(header, dict(contents.tensors))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise FileError(f"{contents.path} is a damaged checkpoint ({told})") from error


def _checked(header: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    hints = {**get_type_hints(Checkpoint), **_OF_TENSORS}
    del hints["state"]
    odd = header.keys() ^ {"version", *hints}
    if odd:
        raise ValueError(f"{min(odd)[:80]!r} is missing in its header, or unknown")
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        value = decode(header[name], reader(tensors.pop) if name == "extra_state" else None)
        value = _arch(value) if name == "arch" else tuple(value) if isinstance(value, list) else value
        if not fits(value, hint):
            raise TypeError(f"its {name} is of another type")
        values[name] = value
    tied, strides = values.pop("tied"), values.pop("strides")
    state = {name: with_strides(each, strides[name]) if name in strides else each for name, each in tensors.items()}
    for name, first in tied.items():
        state[name] = state[first]
    checkpoint = Checkpoint(**values, state=state)
    if (checkpoint.arch is None) == (checkpoint.blueprint is None):
        raise ValueError("it says in two ways how its network is built, or in none")
    if len(checkpoint.steps) > _MOST_STEPS:
        raise ValueError(f"it was transformed {len(checkpoint.steps)} times")
    if checkpoint.input_shape is not None:
        check_shape(checkpoint.input_shape)
    if not all(math.isfinite(each) for each in (*(checkpoint.mean or ()), *(checkpoint.std or ()))):
        raise ValueError("its mean or standard deviation is not finite")
    return checkpoint


def _arch(held: Any) -> Arch | None:
    if held is None:
        return None
    name, arguments, sha256 = held["name"], held["arguments"], held["sha256"]
    if not isinstance(name, str) or not FORM.fullmatch(name) or not isinstance(sha256, str | None):
        raise ValueError("its architecture has no name of a known form")
    if not isinstance(arguments, dict) or not all(isinstance(key, str) and key.isidentifier() for key in arguments):
        raise ValueError("the arguments of its architecture are not named values")
    if not all(_is_argument(value) for value in arguments.values()):
        raise ValueError("the arguments of its architecture are not numbers and words, or tuples of them")
    if len(str(arguments)) > _LONGEST_ARGUMENTS:
        raise ValueError("the arguments of its architecture are longer than anyone would write")
    return Arch(name, arguments, sha256)


def _is_argument(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_argument(each) for each in value)
    return value is None or type(value) in (bool, int, float, str)
