"""Check a package that was copied somewhere: all files there, whole, unchanged, and nothing read from elsewhere."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.errors import FileError, shown
from compressor.exporting.outside import places_of
from compressor.files.limits import apart
from compressor.files.paths import beside, copied
from compressor.report.manifest import MANIFEST, MODEL, TUNED_MODEL, TUNED_WEIGHTS, Manifest, read_manifest


def verify_package(folder: str | os.PathLike[str]) -> Manifest:
    """Check that a package is as it was exported: every file there, a real file, of the size and hash it had.

    Raises:
        FileError: a file is missing, changed or a link, or a graph reads weights from outside the folder.

    Example:
        manifest = compressor.verify_package("runs/deploy")
        manifest.exits[0].macs, manifest.files
    """
    place = Path(folder)
    with tempfile.TemporaryDirectory(prefix="compressor-") as copies:
        return check_package(place, read_manifest(place), Path(copies), everything=False)


def read_portable(place: Path) -> Manifest:
    """The manifest of a package without the files that `compressor tune` added."""
    manifest = read_manifest(place)
    files = {name: facts for name, facts in manifest.files.items() if name not in (TUNED_MODEL, TUNED_WEIGHTS)}
    return replace(manifest, files=files, tuned=None)


def check_package(
    place: Path, manifest: Manifest, copies: Path, *, everything: bool = True, own: bool = False
) -> Manifest:
    """Check a folder against a manifest, as `verify_package` does.

    Each file is read once: its graphs, and with `everything` all of it, are what lies in the folder `copies` then. Of
    a package that this process wrote (`own`) the graphs are read in this process.
    """
    for name, facts in manifest.files.items():
        if name != Path(name).name:
            raise FileError(f"{place / MANIFEST} names a file outside the folder ({name!r}): do not use this package")
        _check_file(place, name, facts, copies / name if everything or name.endswith(".onnx") else None)
    for name in manifest.files:
        if name.endswith(".onnx"):
            copy, path = str(copies / name), place / name
            found = (
                places_of(copy, str(path)) if own else apart(path, f"{places_of.__module__}:places_of", copy, str(path))
            )
            for other in sorted(set(found) - set(manifest.files)):
                raise FileError(
                    f"{path} reads weights from {shown(other)!r}, which is no file of the package: do not use it"
                )
    if MODEL not in manifest.files:
        raise FileError(f"{place / MANIFEST} names no {MODEL}: export the package again")
    return manifest


def _check_file(place: Path, name: str, facts: dict[str, Any], copy: Path | None) -> None:
    path = place / name
    with beside(place, name) as file:
        found = copied(file, copy)
    if found["bytes"] != facts["bytes"]:
        raise FileError(f"{path} has {found['bytes']:,} bytes and had {facts['bytes']:,}: copy the package again")
    if found["sha256"] != facts["sha256"]:
        raise FileError(f"{path} was changed since it was exported (its sha256 differs): copy the package again")
