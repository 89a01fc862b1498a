"""Files are made in a temporary folder beside their final place and moved there when they are whole and checked."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from compressor.errors import FileError


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
