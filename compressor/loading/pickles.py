"""Open what torch.save wrote, without running code unless it is asked for."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from compressor import vision  # noqa: F401  its import puts torchvision's modules where a trusted file's are looked up
from compressor.errors import FileError
from compressor.limits import LARGEST_GIB, check_size
from compressor.loading.archive import Record, records
from compressor.loading.stand_ins import unpickle
from compressor.loading.stored import Source, Storage, found_in, one_line_errors
from compressor.text import first_line

_LARGEST_PICKLE = 64 << 20  # a state dict of a thousand tensors takes some 100 kB; training records come beside it

# torch.save's format before 1.6: these two numbers, the machine, the object and the keys of its storages, each as a
# pickle; then the storages, each after its number of values.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)


def read_pickle(path: Path, *, trust: bool = False, most_gib: float = LARGEST_GIB) -> Any:
    """What torch.save put into `path`, on the CPU: of dicts plain ones, of tensors and networks what stands for them.

    With `trust` the file's code runs, and the objects themselves are returned.

    Raises:
        FileError: the file is damaged, of more than `most_gib`, or its pickle does what torch.save never writes.
    """
    try:
        check_size(f"{path} has", path.stat().st_size, most_gib)
        with path.open("rb") as file, one_line_errors(path):
            if trust:
                return _read_trusted(path)
            return _read_zip(file, path) if zipfile.is_zipfile(file) else _read_legacy(file, path)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} is not a pickle that can be read without running code ({first_line(error)}): save the state dict "
            "again with torch.save's defaults, or open it with --trust if you know who made it"
        ) from error
    except EOFError as error:
        raise FileError(f"{path} is cut off or damaged (its pickle has no end): copy or download it again") from error


def _read_zip(file: BinaryIO, path: Path) -> Any:
    found = records(file, path)
    contents = {}
    for name in ("data.pkl", "byteorder"):
        record = found.get(name, Record(0, 0))
        if record.size > _LARGEST_PICKLE:
            raise ValueError(f"its pickle has {record.size:,} bytes")
        contents[name] = bytearray(record.size)
        record.read_into(file, contents[name])
    _check_order(contents["byteorder"] != b"big")
    source = Source(
        path, {name.removeprefix("data/"): each for name, each in found.items() if name.startswith("data/")}
    )
    pickled = contents["data.pkl"]
    return found_in(unpickle(io.BytesIO(pickled), len(pickled), source.names, Storage.of), source)


def _read_legacy(file: BinaryIO, path: Path) -> Any:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    source = Source(path, {})
    storages: dict[str, Storage] = {}

    def storage(place: tuple[Any, ...]) -> Storage:
        found = Storage.of(place)
        return storages.setdefault(found.key, found) and found

    try:
        *numbers, machine, held, keys = (unpickle(file, size, source.names, storage) for _ in range(5))
    except pickle.UnpicklingError as error:
        if "persistent_load of storage" not in str(error):
            raise
        raise FileError(
            f"{path} is a network in the format of torch before 1.6, of which only state dicts are opened: save the "
            "state dict and give --arch, or open it with --trust if you know who made it"
        ) from error
    if tuple(numbers) != _LEGACY or type(keys) is not list or len(set(keys)) < len(keys):
        raise ValueError("it does not begin as torch.save's files do")
    _check_order(machine.get("little_endian") is True)
    for key in keys:
        count = storages[key].count
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"storage {key} has another size than its tensors say")
        source.records[key] = Record(file.tell(), count * storages[key].dtype.itemsize)
        file.seek(source.records[key].size, os.SEEK_CUR)
    return found_in(held, source)


def _check_order(little: bool) -> None:
    if not little or sys.byteorder != "little":
        raise ValueError("it was written on a machine that has its bytes in another order")


def _read_trusted(path: Path) -> Any:
    # The classes of one's own module are found where one would run one's own script.
    folders = [str(Path.cwd()), str(path.resolve().parent)]
    sys.path[:0] = folders
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise FileError(
            f"{path} needs Python code that is not here ({error}): run in the folder of that code, or save the state "
            "dict and give --arch FILE.py:build"
        ) from error
    except Exception as error:
        raise FileError(f"{path} cannot be opened ({type(error).__name__}: {first_line(error)})") from error
    finally:
        for folder in folders:
            sys.path.remove(folder)
