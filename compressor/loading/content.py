"""What a model file is, told from its bytes and never from its name; and what lies in torch.save's archive, checked."""

import io
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import FileError, one_line
from compressor.files.limits import LARGEST_GIB, check_size
from compressor.files.paths import named_alike
from compressor.loading.arch import SAMPLE_FOLDER

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


class Content(Enum):
    """The kinds of file that can be opened."""

    PICKLE = "torch.save"
    SAFETENSORS = "safetensors"
    PROGRAM = "exported program"  # of torch.export.save
    SCRIPT = "TorchScript program"
    ONNX = "ONNX"


# The first pickle of torch.save's format before 1.6: protocol 2, then this number.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# ONNX has no magic number of its own. Every writer begins with ir_version, a small number; then the producer's name
# or version, the domain, the model's version, a text, the graph, an opset or a property, by number and kind.
_ONNX = re.compile(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42\x72]")

# Files that people give by accident, by their first bytes.
_NEARLY = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for: run `git lfs pull`"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"\x89HDF", "is an HDF5 file (Keras): only PyTorch models and ONNX are opened"),
    (b"<", "is a web page or XML, not a model: was the download a page about the file?"),
    (b"\x80", "is a pickle, but not one that torch.save wrote: load it in Python and save it with torch.save"),
)


def recognise(path: Path, most_gib: float = LARGEST_GIB) -> Content:
    """Say what kind of model file `path` is, by content.

    Raises FileError where there is no such file, and for every file that is empty, cut off, of another kind or larger
    than `most_gib`.
    """
    try:
        found = path.stat()
        size = found.st_size
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise FileError(f"{path} is no regular file: copy the model into one")
        check_size(f"{path} has", size, most_gib)
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise unreadable(path, error) from error
    if size == 0:
        raise FileError(f"{path} is empty (0 bytes): copy or download it again")
    if head.startswith(b"PK\x03\x04"):
        return _inside_zip(path)
    if head.startswith(_LEGACY_MAGIC):
        return Content.PICKLE
    if _starts_like_safetensors(head):
        return Content.SAFETENSORS
    if _ONNX.match(head):
        return Content.ONNX
    for start, complaint in _NEARLY:
        if head.startswith(start):
            raise FileError(f"{path} {complaint}")
    raise FileError(
        f"{path} is not a model file: what opens is a checkpoint of compressor's, torch.save's state dict or module, "
        "safetensors, ONNX"
    )


def unreadable(path: Path, error: OSError) -> FileError:
    """What is to be said of a model file that the system does not open."""
    if isinstance(error, FileNotFoundError):
        return FileError(_no_such_file(path))
    if isinstance(error, IsADirectoryError):
        return FileError(_a_folder(path))
    return FileError(f"{path} cannot be read: {error.strerror or error}")


def _no_such_file(path: Path) -> str:
    text, sample = str(path), SAMPLE_FOLDER / path.name
    if text.startswith(("torchvision:", "timm:")) or ".py:" in text:
        return f"there is no file {text}: an architecture with random weights is asked for by `arch` {text}"
    if path.parent.name == SAMPLE_FOLDER.name and sample.is_file():
        return f"there is no file {text} here: compressor's own is {sample}"
    return f"there is no file {text}{named_alike(path)}"


def _a_folder(path: Path) -> str:
    inside = path / "model.safetensors"
    hint = f"give the file in it: {inside}" if inside.is_file() else "give a model file"
    return f"{path} is a folder: {hint}"


def _inside_zip(path: Path) -> Content:
    """torch.save, torch.export.save and torch.jit.save all write a zip; the names of its records tell them apart."""
    with opened(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.namelist()}
    if "constants.pkl" in names:
        return Content.SCRIPT
    if "data.pkl" in names:
        return Content.PICKLE
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return Content.PROGRAM
    raise FileError(f"{path} is a zip archive without a PyTorch model in it: unpack it and give the model file")


def _starts_like_safetensors(head: bytes) -> bool:
    """Eight bytes of header length, then the header, which is JSON."""
    return len(head) > 8 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 32
