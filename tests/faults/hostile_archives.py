"""Files that are not what they seem: archives that unpack to far more, or to two things, and damaged ones."""

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.faults.assembler import (
    dic,
    number,
    program,
    storage,
    tensor,
    text,
    zip_of,
)
from tests.faults.hostile_pickles import Make, shell, system

_HARMLESS = program(dic(text("w"), number(1)))


def written(content: bytes) -> Make:
    """Just these bytes."""
    return lambda path, canary: path.write_bytes(content) and None


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def state_of(count: int) -> bytes:
    """A state dict of one tensor of zeros."""
    return dic(text("w"), tensor(storage("0", count), (count,), (1,)))


def _packed(record: str, size: int) -> Make:
    """An archive of which one record unpacks to `size` zeros, made without packing them all."""

    def make(path: Path, canary: Path) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/version", b"3\n")
            if record != "data.pkl":
                archive.writestr("archive/data.pkl", program(state_of(size // 4)))
            archive.writestr(f"archive/{record}", block * (size >> 24) + packer.flush())
            entry = archive.getinfo(f"archive/{record}")
            entry.compress_type, entry.file_size, entry.CRC = zipfile.ZIP_DEFLATED, size, 0

    return make


def _overlapping(path: Path, canary: Path) -> None:
    """Ten thousand directory entries for one and the same record of a megabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", _HARMLESS)
        archive.writestr("archive/data/0", bytes(1 << 20))
        entry = archive.getinfo("archive/data/0")
        for number_of_copy in range(10_000):
            copy = zipfile.ZipInfo(f"archive/data/{number_of_copy + 1}")
            copy.header_offset, copy.file_size, copy.compress_size = entry.header_offset, 1 << 20, 1 << 20
            copy.CRC = entry.CRC
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    path.write_bytes(file.getvalue())


def _many_records(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _HARMLESS)
        for count in range(160_000):
            archive.filelist.append(_entry(count))


def _entry(count: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(f"archive/data/{count:060}")
    entry.header_offset, entry.CRC = 0, 0
    return entry


def _sparse(head: bytes, size: int) -> Make:
    """A file that says it is large, and holds next to nothing."""

    def make(path: Path, canary: Path) -> None:
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)

    return make


def _doubled(first: str, second: str) -> Make:
    """Two pickles under names that some readers hold for the same."""

    def make(path: Path, canary: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/version", b"3\n")
            archive.writestr(first, _HARMLESS)
            archive.writestr(second, program(system(canary)))

    return make


def _surrounded(before: bool) -> Make:
    """A harmless archive with a hostile one before or behind it."""

    def make(path: Path, canary: Path) -> None:
        zip_of(path, program(system(canary)))
        hostile = path.read_bytes()
        zip_of(path, _HARMLESS)
        harmless = path.read_bytes()
        path.write_bytes(hostile + harmless if before else harmless + hostile)

    return make


def _edited(edit: Callable[[bytearray], None]) -> Make:
    """A good file with some bytes changed."""

    def make(path: Path, canary: Path) -> None:
        content = bytearray(saved({"w": torch.zeros(4)}))
        edit(content)
        path.write_bytes(content)

    return make


def _wide_directory(content: bytearray) -> None:
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = struct.pack("<L", 2**31)


def _encrypted(content: bytearray) -> None:
    content[content.index(b"PK\x01\x02") + 8] |= 1


def _tar(path: Path, canary: Path) -> None:
    """torch's format before 0.1.10, under a name that begins like the later one."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for entry, value in (
            ("storages", pickle.dumps(0)),
            ("tensors", pickle.dumps(0)),
            ("pickle", program(system(canary))),
        ):
            info = tarfile.TarInfo(entry)
            info.size = len(value)
            archive.addfile(info, io.BytesIO(value))


def _script(path: Path, canary: Path) -> None:
    """TorchScript: a program by definition."""
    code = b"def forward(self, x): return x"
    zip_of(path, _HARMLESS, {"constants.pkl": program(system(canary)), "code/__torch__.py": code})


def _program(path: Path, canary: Path) -> None:
    """An exported program, whose reader in torch evaluates expressions and unpickles."""
    with zipfile.ZipFile(path, "w") as archive:
        for record, content in (("archive_format", b"pt2"), ("models/model.json", b"["), ("x.pkl", system(canary))):
            archive.writestr(f"archive/{record}", content)


ARCHIVES: dict[str, Make] = {
    "packed_weights": _packed("data/0", 3 << 30),
    "packed_pickle": _packed("data.pkl", 1 << 30),
    "overlapping_records": _overlapping,
    "many_records": _many_records,
    "two_names": _doubled("archive/data.pkl", "archive/DATA.PKL"),
    "two_folders": _doubled("archive/data.pkl", "other/data.pkl"),
    "archive_before": _surrounded(True),
    "archive_behind": _surrounded(False),
    "directory_elsewhere": _edited(_wide_directory),
    "encrypted": _edited(_encrypted),
    "sparse_zip": _sparse(b"PK\x03\x04", 40 << 30),
    "sparse_safetensors": _sparse((100).to_bytes(8, "little") + b"{", 40 << 30),
    "tar": _tar,
    "torchscript": _script,
    "program": _program,
    "empty": written(b""),
    "one_byte": written(b"\x80"),
    "text": written(b"this is no model\n" * 20),
    "cut_off": lambda path, canary: path.write_bytes(saved({"w": torch.zeros(1000)})[:2500]) and None,
    "flipped": _edited(lambda content: content.__setitem__(slice(60, 90), bytes(30))),
    "old_cut_off": lambda path, canary: (
        path.write_bytes(saved({"w": torch.zeros(99)}, _use_new_zipfile_serialization=False)[:300]) and None
    ),
    "shell_script": lambda path, canary: path.write_text(f"#!/bin/sh\n{shell(canary)}\n") and None,
}
