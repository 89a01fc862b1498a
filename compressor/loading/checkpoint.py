"""The one kind of file that compressor keeps models and the state of runs in: safetensors, with JSON in its metadata.

Nothing in such a file can be run. Its header is checked before the library reads it, and a checksum over the plain data
and the tensors is in the metadata of those that `write` made.

Of a model the metadata say how its network is built: the tensors are those of the state dict, under their names there;
the network is an architecture (`arch`) or a description of published layers (`blueprint`), what was made of it
(`steps`), and the sizes that surgery changed since (`structure`).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from compressor.errors import FileError, ModelError, first_line, one_line
from compressor.files.limits import LARGEST_GIB, check_size
from compressor.files.paths import named_alike, replacing
from compressor.loading.arch import FORM, Arch
from compressor.loading.forms import Packer, encode, from_json, plain, to_json, unpack
from compressor.settings import fits
from compressor.vision.preparation import Preparation

_LARGEST_HEADER = 16 << 20  # bytes
_MOST_NAMES = 1 << 16
_CHECKSUM = "sha256"


@dataclass(frozen=True)
class Contents:
    """What is in a safetensors file: tensors on the CPU, and texts."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def plain(self, kind: str) -> Any:
        """The plain data of a file that `write` made with this kind.

        Raises:
            FileError: it is of another kind, or damaged.
        """
        text = self.metadata.get(kind)
        if text is None:
            raise FileError(f"{self.path} is not a file of the kind {kind!r}")
        if self.metadata.get(_CHECKSUM) != _checksum(text, self.tensors):
            raise FileError(f"{self.path} is damaged (its checksum is wrong): copy or download it again")
        try:
            return from_json(text)
        except (ValueError, RecursionError) as error:
            raise FileError(f"{self.path} is damaged ({first_line(error)})") from error


def read(path: Path, most_gib: float = LARGEST_GIB) -> Contents:
    """Read a safetensors file, whoever wrote it.

    Raises:
        FileError: it is missing, larger than `most_gib`, or damaged; or its header is larger than 16 MiB or has more
            than 65,536 names.
    """
    import safetensors.torch

    try:
        if not path.is_file():
            raise FileError(f"there is no file {path}{named_alike(path)}")
        check_size(f"{path} has", path.stat().st_size, most_gib)
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from error
    try:
        metadata = _header(data).get("__metadata__", {})
        return Contents(path, safetensors.torch.load(data), metadata)
    except Exception as error:  # whoever made the file chose which of several libraries gives up on it
        raise FileError(f"{path} is cut off or damaged ({first_line(error)}): copy or download it again") from error


def write(path: Path, kind: str, plain: Any, tensors: Mapping[str, Tensor], previous: Path | None = None) -> None:
    """Write a file that is there whole or not at all; one that was there before goes to `previous`.

    `plain` is data that JSON holds, the tensors are contiguous.

    Raises:
        FileError: it cannot be written.
    """
    import safetensors.torch

    text = to_json(plain)
    metadata = {kind: text, _CHECKSUM: _checksum(text, tensors)}
    with replacing(path, previous) as temporary:  # not by save_file, whose files nobody else may read
        temporary.write_bytes(safetensors.torch.save(dict(tensors), metadata))


def _header(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= min(_LARGEST_HEADER, len(data) - 8):
        raise ValueError(f"a header of {size:,} bytes")
    header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_entries)
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header


def _entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(pairs) > _MOST_NAMES or len(entries) < len(pairs):
        raise ValueError(f"a header of {len(pairs):,} names, or with one of them twice")
    return entries


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


KIND = "compressor"  # of the file, and the name under which the metadata have the header
VERSION = 1

_LONGEST_ARGUMENTS = 4000  # characters
_MOST_STEPS = 32  # transformations of one network after another
_MOST_INPUTS = 1 << 26  # values of one image: 3x4096x4096 is within


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a network comes from, and what is known about it."""

    arch: Arch | None = None  # how to build it; None where no architecture is named
    blueprint: dict[str, Any] | None = None  # in place of it: the layers, see loading.networks
    steps: tuple[dict[str, Any], ...] = ()  # what was made of the network, each with its kind; see loading.steps
    input_shape: tuple[int, ...] | None = None  # (channels, height, width)
    classes: tuple[str, ...] | None = None
    preparation: Preparation | None = None  # how images are made ready for the network
    history: tuple[str, ...] = ()  # the commands that made it, oldest first
    measurements: dict[str, Any] = field(default_factory=dict)

    @property
    def built_from(self) -> str:
        """The network's definition, in words."""
        return "its layers" if self.arch is None else str(self.arch)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Origin):
    """What a checkpoint holds. Either `arch` or `blueprint` is None."""

    structure: dict[str, Any]  # sizes that were edited since the last step
    state: dict[str, Any]  # the state dict, and the buffers that are not in it


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, whole or not at all.

    Raises UsageError for a value that is not plain, ModelError for a tensor that a file cannot hold, FileError where
    the file cannot be written.
    """
    packer = Packer()
    header: dict[str, Any] = {"version": VERSION, "state": packer.pack(checkpoint.state)}
    for each in fields(checkpoint):
        value = getattr(checkpoint, each.name)
        if each.name != "state":
            value = asdict(value) if isinstance(value, Arch | Preparation) else value
            header[each.name] = encode(plain(list(value) if isinstance(value, tuple) else value, each.name), each.name)
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
    with one_line(f"{contents.path} is a damaged checkpoint ("):
        return _checked(header, contents.tensors)


def _checked(header: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    hints = get_type_hints(Checkpoint)
    odd = header.keys() ^ {"version", *hints}
    if odd:
        raise ValueError(f"{min(odd)[:80]!r} is missing in its header, or unknown")
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        value = unpack(header[name], tensors if name == "state" else {})
        value = _MADE[name](value) if name in _MADE and value is not None else value
        value = tuple(value) if isinstance(value, list) else value
        if not fits(value, hint):
            raise TypeError(f"its {name} is of another type")
        values[name] = value
    checkpoint = Checkpoint(**values)
    if (checkpoint.arch is None) == (checkpoint.blueprint is None):
        raise ValueError("it says in two ways how its network is built, or in none")
    if len(checkpoint.steps) > _MOST_STEPS:
        raise ValueError(f"it was transformed {len(checkpoint.steps)} times")
    shape = checkpoint.input_shape or (1,)
    if not 1 <= len(shape) <= 8 or min(shape) <= 0 or math.prod(shape) > _MOST_INPUTS:
        raise ValueError("its input shape is not that of an image")
    return checkpoint


def _arch(held: dict[str, Any]) -> Arch:
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


_MADE = {"arch": _arch, "preparation": Preparation.from_json}
