"""Read what torch.save wrote without running code: tensors, plain types, and modules of torch's and torchvision's.

A pickle is a program that names functions and calls them. torch.load(weights_only=True) runs it on an interpreter
that knows a fixed list of names; here that list grows by the exact network classes that the file asks for, and only
where the class is defined in one of the packages below and is an nn.Module. Functions, methods, dotted names and
things that a module merely imported are never let through, so whatever such a file calls can build layers and
nothing else.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from compressor import vision  # noqa: F401  its import puts torchvision's modules where the classes are looked up
from compressor.errors import FileError
from compressor.limits import LARGEST_GIB, check_size
from compressor.loading.archive import check_archive
from compressor.loading.instructions import Kind, Reader, Survey
from compressor.text import shown

# Where the allowed network classes are defined; only these, not what is imported there.
_PACKAGES = ("torch.nn.modules.", "torch.nn.parallel.data_parallel.", "torchvision.models.", "torchvision.ops.")

# What training scripts keep beside the weights (their flags, numpy numbers, paths). It is read as an empty object:
# the weights can be had, and nothing is called.
_RECORDS = frozenset(
    {
        "argparse.Namespace",
        "datetime.datetime",
        "datetime.timedelta",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "numpy.dtypes.Float32DType",
        "numpy.dtypes.Float64DType",
        "numpy.dtypes.Int64DType",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
    }
)

# A state dict of a thousand tensors takes some 100 kB; training records come beside it.
_LARGEST_PICKLE = 256 << 20


class Record:
    """Stands where a file holds something that is no weight; takes any content and keeps none."""

    def __new__(cls, *_: Any, **__: Any) -> Record:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_pickle(path: Path, *, trust: bool = False, most_gib: float = LARGEST_GIB) -> Any:
    """What torch.save put into `path`, on the CPU.

    Raises FileError for a damaged file or one that takes more than `most_gib` unpacked, and without `trust` for one
    that asks for anything but tensors, plain types and network classes of torch and torchvision; the message lists what
    it asks for. With `trust` the file's code runs, whatever it is.
    """
    with _one_line_errors(path), path.open("rb") as file:
        sizes = _check_container(file, path, most_gib)
        if not trust:
            return _read_surveyed(file, path, _survey(file, sizes))
    return _read_trusted(path)


def _read_surveyed(file: BinaryIO, path: Path, survey: Survey) -> Any:
    refused = sorted(name for name in survey.names if not _is_allowed(name))
    if refused:
        raise FileError(
            f"{path} would run code that is neither torch's nor torchvision's: it asks for {listed(refused)}; save the "
            "state dict instead and give --arch, or open it with --trust if you know who made it"
        )
    if survey.objection is not None:
        raise FileError(
            f"{path} is not a pickle that can be read without running code ({shown(survey.objection)}): save the "
            "state dict again with torch.save's defaults, or open it with --trust if you know who made it"
        )
    allowed: list[Any] = [(found, name) for name in survey.names if (found := _network_class(name)) is not None]
    allowed += [(Record, name) for name in survey.names if name in _RECORDS]
    file.seek(0)
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        # A pickle of another protocol is read all the same where its instructions are known.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True)


def read_plain(file: BinaryIO, where: Path, most_gib: float = LARGEST_GIB) -> Any:
    """What torch.save put into an open file, where it is tensors and plain types alone: no module, no record.

    Raises FileError for anything else, and for a damaged file.
    """
    with _one_line_errors(where), warnings.catch_warnings():
        # torch's remarks on pickles of other makes, which are refused anyway.
        warnings.simplefilter("ignore")
        survey = _survey(file, _check_container(file, where, most_gib))
        if survey.objection is not None or any(_kind_of(name) is not None for name in survey.names):
            raise FileError(f"{where} does not hold plain data: it was not written by this program")
        return _read_surveyed(file, where, survey)


def pickled_globals(path: Path) -> list[str]:
    """The names that the pickles in `path` ask for, sorted, "module.name" each; found without running any of it."""
    with _one_line_errors(path), path.open("rb") as file:
        return sorted(_survey(file, _check_container(file, path, LARGEST_GIB)).names)


def is_own_to_torch(module: nn.Module) -> bool:
    """Whether every layer's class is one that `read_pickle` lets through, so that the pickled module opens again."""
    return all(_network_class(f"{type(each).__module__}.{type(each).__qualname__}") for each in module.modules())


def listed(names: list[str], most: int = 6) -> str:
    """The first few of `names` in one line, and how many more there are; a file's names may hold any character."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def _check_container(file: BinaryIO, path: Path, most_gib: float) -> dict[str, int] | None:
    """Check the sizes of a file and the sums of its records; returns the records' sizes, None for the old format."""
    if not zipfile.is_zipfile(file):
        check_size(f"{path} has", file.seek(0, os.SEEK_END), most_gib)
        return None
    sizes = check_archive(file, path, most_gib)
    with zipfile.ZipFile(file) as archive:
        _check_sums(archive)
    return sizes


def _survey(file: BinaryIO, sizes: Mapping[str, int] | None) -> Survey:
    """Follow the file's pickles without carrying them out."""
    reader = Reader(sizes, file.seek(0, os.SEEK_END), _kind_of)
    file.seek(0)
    if sizes is None:
        # The old format: a magic number, the version, the machine, the object, the names of the storages; then bytes.
        for _ in range(5):
            _follow(reader, file)
        return reader.survey
    if not 0 < sizes.get("data.pkl", 0) <= _LARGEST_PICKLE:
        raise ValueError(f"its pickle has {sizes.get('data.pkl', 0):,} bytes")
    with zipfile.ZipFile(file) as archive:
        record = next(name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl")
        _follow(reader, io.BytesIO(archive.read(record)))
    return reader.survey


def _follow(reader: Reader, stream: BinaryIO) -> None:
    try:
        reader.follow(stream)
    except MemoryError as error:  # nothing is kept there: it is a damaged length that asks for so much
        raise ValueError("a length that no file has") from error


def _check_sums(archive: zipfile.ZipFile) -> None:
    """Compare the records with their checksums, which torch writes and does not read: a damaged weight is silent."""
    for record in archive.infolist():
        if record.CRC == 0:  # none was written: torch.serialization.set_crc32_options
            continue
        with archive.open(record) as stream:
            while stream.read(1 << 20):
                pass


def _kind_of(name: str) -> Kind | None:
    if name in _RECORDS:
        return Kind.RECORD
    return None if _network_class(name) is None else Kind.NETWORK


def _is_allowed(name: str) -> bool:
    from torch._weights_only_unpickler import _get_allowed_globals

    return name in _get_allowed_globals() or name in _RECORDS or _network_class(name) is not None


def _network_class(name: str) -> type[nn.Module] | None:
    """The network class that `name` is, if it is defined in one of the allowed packages; None for all else."""
    module_name, _, attribute = name.rpartition(".")
    if not f"{module_name}.".startswith(_PACKAGES):
        return None
    # Looked up, not imported: a file does not decide what is imported.
    found = getattr(sys.modules.get(module_name), attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        return None
    return found if (found.__module__, found.__qualname__) == (module_name, attribute) else None


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes torch, zipfile or the unpickler say, in one line."""
    try:
        yield
    except (FileError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        # torch wraps the reason into a page of advice.
        reason = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        first = reason.group(1) if reason else str(error).strip().splitlines()[0]
        raise FileError(
            f"{path} is not a pickle that can be read without running code ({first[:200]}): save the state dict again "
            "with torch.save's defaults, or open it with --trust if you know who made it"
        ) from error
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileError(f"{path} is cut off or damaged ({first[:200]}): copy or download it again") from error


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
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileError(f"{path} cannot be opened ({type(error).__name__}: {first[:200]})") from error
    finally:
        for folder in folders:
            sys.path.remove(folder)
