"""The zip archive that torch.save writes: where its records lie, checked before anything is unpacked."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from compressor.errors import FileError
from compressor.text import shown

_LARGEST_DIRECTORY = 16 << 20  # bytes; some 200,000 records
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of the name and of what else is before the content


@dataclass(frozen=True)
class Record:
    """A part of a file."""

    start: int
    size: int  # bytes
    checksum: int | None = None  # CRC-32, where the file has one

    def read_into(self, file: BinaryIO, content: Any) -> None:
        """Fill `content`, of its size. Raises ValueError where the file has other bytes than it says."""
        file.seek(self.start)
        count = file.readinto(content)  # type: ignore[attr-defined]
        if count != self.size or self.checksum not in (None, zlib.crc32(content)):
            raise ValueError("one of its records is not what was written")


class _Bounded(io.FileIO):
    """A file of which not more is read at once than the directory of a model's archive may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("its directory is larger than any model's")
        return super().read(size) or b""


def directory(path: Path) -> list[zipfile.ZipInfo]:
    """What an archive's directory lists. Raises FileError where it is damaged, or larger than any model's."""
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise FileError(f"{path} is cut off or damaged ({shown(str(error))}): copy or download it again") from error


def records(file: BinaryIO, path: Path) -> dict[str, Record]:
    """The records of an archive by their names, without the folder that all of them lie in.

    Raises FileError for an archive that torch.save did not write: it keeps every record as it is, so that nothing
    unpacks to more than the file's size, and under a name of its own. Raises ValueError for a damaged one.
    """
    entries = directory(path)
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise FileError(f"{path} is compressed, which torch.save's files are not: unpack it, and pack it uncompressed")
    found = {entry.filename.split("/", 1)[-1]: _record(entry, file) for entry in entries}
    folders = {entry.filename.split("/", 1)[0] for entry in entries}
    held = sum(record.size for record in found.values())
    if len(folders) > 1 or len(found) < len(entries) or held > file.seek(0, os.SEEK_END):
        raise ValueError("its records do not lie in one folder, each by itself")
    return found


def _record(entry: zipfile.ZipInfo, file: BinaryIO) -> Record:
    file.seek(entry.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError("a record of its directory is not there")
    start = entry.header_offset + _LOCAL_HEADER.size + name + extra
    return Record(start, entry.file_size, entry.CRC or None)  # none was written: set_crc32_options
