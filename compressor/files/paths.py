"""Files from outside, opened once and only where they are real ones; files of ours, written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from compressor.errors import FileError, did_you_mean, shown

_BLOCK = 1 << 20  # bytes read at once
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def named_alike(path: Path, *, folder: bool = False) -> str:
    """The end of a message about a file, or folder, that is not there: what lies there under a similar name."""
    try:
        names = [each.name for each in path.parent.iterdir() if each.is_dir() == folder]
    except OSError:
        return ""
    return did_you_mean(path.name, names)


@contextmanager
def real_file(path: Path) -> Iterator[BinaryIO]:
    """A file that a person named: whole, regular and no link. Folders above it may be links.

    Raises FileError.
    """
    with _as_refusal(path, f"there is no file {path}"), _regular(os.open(path, _OPEN), path) as file:
        yield file


@contextmanager
def beside(folder: Path, place: str) -> Iterator[BinaryIO]:
    """A file that another file names by its place in the same folder, or in folders below it.

    Neither it nor a folder on the way may be a link, and it may have no second name (a hard link), by which it could be
    a file of somewhere else.

    Raises FileError.
    """
    path, parts = folder / shown(place), PurePosixPath(place).parts
    if not parts or "\0" in place or PurePosixPath(place).is_absolute() or ".." in parts or "\\" in place:
        raise FileError(
            f"{folder} holds a model that wants a file from outside of its folder ({shown(place) or 'no name'})"
        )
    with _as_refusal(path, f"{path} is missing: copy it there"):
        at = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            for part in parts[:-1]:
                at, above = os.open(part, _OPEN | os.O_DIRECTORY, dir_fd=at), at
                os.close(above)
            descriptor = os.open(parts[-1], _OPEN, dir_fd=at)
        finally:
            os.close(at)
    with _as_refusal(path, ""), _regular(descriptor, path) as file:
        if os.fstat(descriptor).st_nlink != 1:
            raise FileError(f"{path} is a hard link, a second name of a file: copy the file itself there")
        yield file


@contextmanager
def _regular(descriptor: int, path: Path) -> Iterator[BinaryIO]:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path} is no regular file: copy the file itself there")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def copied(file: BinaryIO, target: Path | None = None) -> dict[str, Any]:
    """Size and SHA-256 of a file, read once and written to `target` on the way."""
    digest, size = hashlib.sha256(), 0
    with open(os.devnull if target is None else target, "wb") as copy:  # noqa: PTH123
        while block := file.read(_BLOCK):
            digest.update(block)
            copy.write(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


@contextmanager
def _as_refusal(path: Path, missing: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(missing) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FileError(f"{path} is a link, or reached through one: copy the file itself there") from error
        raise FileError(f"{path} cannot be read ({error.strerror or error})") from error


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """The name of a temporary file beside `path`, which takes its place when the block is left without an error.

    The content is flushed to the disk first. A file that was there before goes to `previous`, where that is given;
    after an error everything is as it was.

    Raises:
        FileError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Try to write to a folder that may not be there yet, before work is done for it; nothing stays behind.

    Raises:
        FileError: it cannot be written.
    """
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise FileError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error


def write_whole(path: Path, text: str) -> Path:
    """Write a text file so that it is there whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets a folder be synchronised."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own_folder(variable: str, usual: str) -> Path:
    """Our folder of a kind in the user's home, as the XDG base directories name it; it may not exist yet."""
    folder = os.environ.get(variable)
    return (Path(folder) if folder else Path.home() / usual) / "compressor"


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write plain data so that the file is there whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    return write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `path`, removed at the end whatever happened.

    Raises:
        FileError: nothing can be written there.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line that a file or folder cannot be written, whatever the disk has to say about it."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror or error})") from error


def move_files(folder: Path, target: Path, last: str) -> None:
    """Move all files of a folder into another one; the one named `last` comes last: it tells of the others."""
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
            file.replace(target / file.name)


def move_folder(folder: Path, target: Path, last: str, outdated: Iterable[str] = ()) -> None:
    """Give a folder its final name; where one of that name is there already, the files move into it.

    `outdated` are files of an earlier export in it, which go; all others stay.
    """
    with writing(target):
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            if target.exists():
                target.rmdir()
            folder.chmod(0o755)  # mkdtemp's folders are closed to others
            folder.rename(target)
            return
        new = {file.name for file in folder.iterdir()}
        for name in outdated:
            if name not in new:
                (target / name).unlink(missing_ok=True)
    move_files(folder, target, last)
