"""Check a zip archive before anything in it is unpacked: how large it gets, and that every reader sees the same.

torch and Python each have a zip reader of their own. What is checked with one of them holds for the other only where
an archive leaves no room for two readings: one directory, at the end, and every name in it once.
"""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from compressor.errors import FileError
from compressor.limits import GIB, check_size

_END = struct.Struct("<4s4H2LH")  # signature, 2 disks, 2 counts, size and place of the directory, length of a comment
_END_64 = struct.Struct("<4sQ2H2L4Q")  # signature, own size, 2 versions, 2 disks, 2 counts, size and place
_LOCATOR_64 = struct.Struct("<4sLQL")
_LARGEST_DIRECTORY = 16 << 20  # bytes; some 200,000 records
_ENCRYPTED = 0x1

# torch.save packs nothing, so an archive that unpacks to much more than its size was made by somebody else. Such a
# one is taken where that somebody only packed it again.
_LARGEST_BLOW_UP = 4
_HARMLESS = GIB // 4


def check_archive(file: BinaryIO, where: Path | str, most_gib: float) -> dict[str, int]:
    """The sizes in bytes of an archive's records, by their names without the folder that all of them lie in.

    Raises FileError for an archive that is damaged, unpacks to more than `most_gib` or to far more than its size, or
    that two readers could read differently.
    """
    packed = file.seek(0, os.SEEK_END)
    records = directory(file, where)
    folders = {record.filename.split("/", 1)[0] for record in records}
    names = {record.filename.lower() for record in records}
    if not records or len(folders) > 1 or len(names) < len(records):
        raise _damaged(where, "its records do not lie in one folder, each under a name of its own")
    if min(record.header_offset for record in records) != 0 or any(each.flag_bits & _ENCRYPTED for each in records):
        raise _damaged(where, "something stands before its first record, or is encrypted")
    unpacked = sum(record.file_size for record in records)
    check_size(f"{where} unpacks to", unpacked, most_gib)
    if unpacked > max(_HARMLESS, _LARGEST_BLOW_UP * packed):
        raise FileError(
            f"{where} has {packed:,} bytes and unpacks to {unpacked:,}: torch.save makes no such file, so it is taken "
            "for one that was made to fill the memory"
        )
    return {record.filename.split("/", 1)[-1]: record.file_size for record in records}


def directory(file: BinaryIO, where: Path | str) -> list[zipfile.ZipInfo]:
    """What an archive's directory lists. Raises FileError where it is damaged, or larger than any model's."""
    _check_end(file, file.seek(0, os.SEEK_END), where)
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise _damaged(where, str(error)) from error


def _check_end(file: BinaryIO, packed: int, where: Path | str) -> None:
    """The directory has to end where the file does, be of a sane size, and be described once."""
    tail = _LOCATOR_64.size + _END.size
    file.seek(max(0, packed - tail))
    read = file.read(tail).rjust(tail, b"\0")
    locator, end = _LOCATOR_64.unpack(read[: _LOCATOR_64.size]), _END.unpack(read[_LOCATOR_64.size :])
    if end[0] != b"PK\x05\x06" or end[-1] != 0:
        raise _damaged(where, "its directory is missing")
    size, place = end[5], end[6]
    if locator[0] == b"PK\x06\x07":
        file.seek(min(locator[2], packed))
        wide = _END_64.unpack(file.read(_END_64.size).ljust(_END_64.size, b"\0"))
        if wide[0] != b"PK\x06\x06" or any(small not in (large, 2**32 - 1) for small, large in zip(end[5:7], wide[8:])):
            raise _damaged(where, "it has two directories")
        size, place = wide[8], wide[9]
        expected = place + size + _END_64.size + tail
    else:
        expected = place + size + _END.size
    if size > _LARGEST_DIRECTORY or expected != packed:
        raise _damaged(where, "its directory is not where it should be")


def _damaged(where: Path | str, reason: str) -> FileError:
    return FileError(f"{where} is cut off or damaged ({reason}): copy or download it again")
