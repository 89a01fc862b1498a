"""The one kind of file that compressor keeps models and the state of runs in: safetensors, with JSON in its metadata.

Nothing in such a file can be run. Its header is checked before the library reads it, and a checksum over the plain data
and the tensors is in the metadata of those that `write` made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import FileError, first_line
from compressor.files.limits import LARGEST_GIB, check_size
from compressor.files.paths import replacing
from compressor.loading.forms import from_json, to_json

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
