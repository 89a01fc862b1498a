"""Check a package that was copied somewhere: all files there, whole, unchanged, and nothing read from elsewhere."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.errors import FileError
from compressor.exporting.manifest import (
    MANIFEST,
    MODEL,
    TUNED_MODEL,
    TUNED_WEIGHTS,
    Manifest,
    file_facts,
    read_manifest,
)
from compressor.exporting.runtime import first_line
from compressor.exporting.weights import graphs_in


def verify_package(folder: str | os.PathLike[str]) -> Manifest:
    """Check that a package is as it was exported: every file there, a real file, of the size and hash it had.

    Raises:
        FileError: a file is missing, changed or a link, or a graph reads weights from outside the folder.

    Example:
        manifest = compressor.verify_package("runs/deploy")
        manifest.exits[0].macs, manifest.files
    """
    return check_package(Path(folder), read_manifest(Path(folder)))


def read_portable(place: Path) -> Manifest:
    """The manifest of a package without the files that `compressor tune` added."""
    manifest = read_manifest(place)
    files = {name: facts for name, facts in manifest.files.items() if name not in (TUNED_MODEL, TUNED_WEIGHTS)}
    return replace(manifest, files=files, tuned=None)


def check_package(place: Path, manifest: Manifest) -> Manifest:
    """Check a folder against a manifest, as `verify_package` does."""
    for name, facts in manifest.files.items():
        if name != Path(name).name:
            raise FileError(f"{place / MANIFEST} names a file outside the folder ({name!r}): do not use this package")
        _check_file(place / name, facts)
    for name in manifest.files:
        if name.endswith(".onnx"):
            _check_graph(place / name, set(manifest.files))
    if MODEL not in manifest.files:
        raise FileError(f"{place / MANIFEST} names no {MODEL}: export the package again")
    return manifest


def _check_file(path: Path, facts: dict[str, Any]) -> None:
    if path.is_symlink():
        raise FileError(f"{path} is a link: copy the file itself into the package")
    if not path.is_file():
        raise FileError(f"{path} is missing: copy the whole package again")
    found = file_facts(path)
    if found["bytes"] != facts["bytes"]:
        raise FileError(f"{path} has {found['bytes']:,} bytes and had {facts['bytes']:,}: copy the package again")
    if found["sha256"] != facts["sha256"]:
        raise FileError(f"{path} was changed since it was exported (its sha256 differs): copy the package again")


def _check_graph(path: Path, files: set[str]) -> None:
    """ONNX lets a graph name any file for its weights."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions
        raise FileError(f"{path} cannot be read as ONNX ({first_line(error)}): export the package again") from error
    tensors = (tensor for graph in graphs_in(model.graph) for tensor in graph.initializer)
    for tensor in tensors:
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]
        if not files.issuperset(places):
            raise FileError(f"{path} reads weights from {places[0]!r}, which is no file of the package: do not use it")
