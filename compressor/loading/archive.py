"""The zip archive that torch.save writes: what lies in it, checked before anything is unpacked."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import FileError
from compressor.loading.damage import one_line

_LARGEST_DIRECTORY = 16 << 20  # bytes; some 200,000 records


class _Bounded(io.FileIO):
    """A file of which not more is read at once than the directory of a model's archive may have."""

    most = _LARGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise zipfile.BadZipFile("its directory is larger than any model's")
        return super().read(size) or b""


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive. Raises FileError where it is damaged, or its directory larger than any model's."""
    with one_line(f"{path} is cut off or damaged ("), _Bounded(path) as file, zipfile.ZipFile(file) as archive:
        file.most = path.stat().st_size
        yield archive


def records(path: Path) -> dict[str, Tensor]:
    """The bytes of an archive's records by their names, without the folder that all of them lie in.

    Raises FileError for an archive that is damaged, or that torch.save did not write: it keeps every record as it is,
    so that nothing unpacks to more than the file's size, and under a name of its own.
    """
    with opened(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise FileError(
                f"{path} is compressed, which torch.save's files are not: unpack it, and pack it uncompressed"
            )
        found = {entry.filename.split("/", 1)[-1]: entry for entry in entries}
        folders = {entry.filename.split("/", 1)[0] for entry in entries}
        held = sum(entry.file_size for entry in entries)
        if len(folders) > 1 or len(found) < len(entries) or held > path.stat().st_size:
            raise ValueError("its records do not lie in one folder, each by itself")
        return {name: _content(archive, entry) for name, entry in found.items()}


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    entry.CRC = entry.CRC or None  # type: ignore[assignment]  # none was written: set_crc32_options
    content = torch.empty(entry.file_size, dtype=torch.uint8)
    with archive.open(entry) as record:
        if record.readinto(content.numpy()) < entry.file_size:  # type: ignore[attr-defined]
            raise ValueError("one of its records is cut off")
    return content
