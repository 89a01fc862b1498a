"""The one kind of file that compressor keeps models and the state of runs in: safetensors, with JSON in its metadata.

Nothing in such a file can be run. Its header is checked before the library reads it, and a checksum over the plain data
and the tensors is in the metadata of those that `write` made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import FileError, ModelError
from compressor.files import replacing
from compressor.limits import LARGEST_GIB, check_size
from compressor.loading.plain import encode, from_json, to_json
from compressor.text import first_line

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
            raise FileError(f"there is no file {path}")
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


@dataclass
class Packer:
    """Takes tensors out of nested plain data; one that is met twice is kept once."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # contiguous and on the CPU, by name
    _names: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _storages: set[int] = field(default_factory=set)
    _met: list[Tensor] = field(default_factory=list)  # kept, so that no other tensor gets the memory of one

    def pack(self, value: Any, where: str) -> Any:
        """The form of a value that is plain or a tensor, or holds such values; raises TypeError for another."""
        return encode(value, where, self._tensor)

    def add(self, tensor: Tensor, name: str) -> tuple[str, list[int] | None]:
        """Keep a tensor; returns the name it is kept under, and its strides where it is not contiguous.

        Raises ModelError for a tensor that a safetensors file cannot hold.
        """
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype in _UNHELD:
            what = "quantized" if tensor.is_quantized else f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
            raise ModelError(f"{name} is a tensor that a file cannot hold ({what})")
        tensor = tensor.detach()
        strides = list(tensor.stride()) if _is_permuted(tensor) else None
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in self._names:
            return self._names[key], strides
        while name in self.tensors:
            name += "'"
        held = tensor.cpu().contiguous()
        shared = held.untyped_storage().data_ptr() in self._storages  # with a view of other sizes
        self.tensors[name] = held.clone() if shared else held
        self._storages.add(held.untyped_storage().data_ptr())
        self._names[key] = name
        self._met.append(tensor)
        return name, strides

    def _tensor(self, value: Any, where: str) -> Any:
        if type(value) is not Tensor:
            return None
        name, strides = self.add(value, where)
        return {"$tensor": name if strides is None else [name, strides]}


def reader(take: Callable[[str], Tensor]) -> dict[str, Callable[[Any], Any]]:
    """For `decode`: reads the forms of tensors that a Packer made; `take` gives a tensor by name."""
    return {"$tensor": lambda held: take(held) if isinstance(held, str) else with_strides(take(held[0]), held[1])}


def with_strides(tensor: Tensor, strides: list[int]) -> Tensor:
    """The tensor in memory of these strides, in which it takes no more room. Raises ValueError for other strides."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    if extent != tensor.numel() or not all(0 <= stride <= extent for stride in strides):
        raise ValueError("strides that do not fit their tensor")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


_UNHELD = (torch.complex32, torch.complex128)


def _is_permuted(tensor: Tensor) -> bool:
    """Whether the tensor is not contiguous, yet fills its memory, as in the channels-last format."""
    like = torch.empty_like(tensor, device="meta")
    ordinary = torch.empty(tensor.shape, device="meta")
    return tensor.numel() > 0 and like.stride() == tensor.stride() and tensor.stride() != ordinary.stride()


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
