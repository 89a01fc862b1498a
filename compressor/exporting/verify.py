"""Check a package that was copied somewhere: all files there, whole, unchanged, nothing read from elsewhere, and who
exported it: an ed25519 signature over its manifest, which holds the hash of every file.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import FileError, UsageError, first_line, shown
from compressor.exporting.outside import places_of
from compressor.exporting.run import Network, compared
from compressor.files.limits import GIB, allow, apart
from compressor.files.paths import beside, copied
from compressor.report.manifest import (
    MANIFEST,
    TUNED_MODEL,
    TUNED_WEIGHTS,
    Manifest,
    manifest_bytes,
    parsed,
    read_manifest,
)

SIGNATURE = "manifest.sig"
_LONGEST = 64  # bytes of a signature


def private_key(path: str) -> Any:
    """The key to sign with, from a PEM file (`openssl genpkey -algorithm ed25519 -out KEY`).

    Raises FileError where it is no such key, UsageError where cryptography is missing.
    """
    return _key(path, "private")


def public_key(path: str) -> Any:
    """The key to check with, from a PEM file (`openssl pkey -in KEY -pubout -out PUBLIC`); raises as `private_key`."""
    return _key(path, "public")


def check_signature(folder: Path, signed: bytes, key: Any) -> None:
    """Raise FileError where the signature in a folder is missing, or not of this text by this key."""
    from cryptography.exceptions import InvalidSignature

    if not (folder / SIGNATURE).exists():
        raise FileError(f"{folder} is not signed: it has no {SIGNATURE} (export --sign KEY writes one)")
    with beside(folder, SIGNATURE) as file:
        signature = file.read(_LONGEST + 1)
    try:
        key.verify(signature, signed)
    except InvalidSignature as error:
        raise FileError(
            f"{folder} was not signed with this key, or its manifest was changed since (`compressor tune` changes it)"
        ) from error


def _key(path: str, kind: str) -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UsageError("signatures need cryptography: pip install 'cnn-compressor[sign]'") from error
    try:
        text = Path(path).expanduser().read_bytes()
        key = (
            serialization.load_pem_private_key(text, None)
            if kind == "private"
            else serialization.load_pem_public_key(text)
        )
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from error
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} is no {kind} key in a PEM file without a password ({first_line(error)})") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey if kind == "private" else ed25519.Ed25519PublicKey):
        raise FileError(f"{path} is a key of another kind: ed25519 is taken (openssl genpkey -algorithm ed25519)")
    return key


_SECONDS, _MEMORY = 60.0, 16 * GIB  # that running the stored image may take; runtimes map much and use little


def verify_package(folder: str | os.PathLike[str], key: str | None = None) -> Manifest:
    """Check that a package is as it was exported: every file there, a real file, of the size and hash it had, and that
    the runtime gives what it gave then for the stored image. Needs numpy and the runtime, no torch.

    Each file is read once. The Python file of a package for plain PyTorch is not run.

    Args:
        key: a public ed25519 key in a PEM file, with whose private key the manifest has to be signed.

    Raises:
        UsageError: a key is given, and cryptography is not installed.
        FileError: the signature is missing or of another key, a file is missing, changed or a link, a graph reads
            weights from outside the folder, or it computes something else here.

    Example:
        manifest = compressor.verify_package("runs/deploy")
        manifest.exits[0].macs, manifest.files
    """
    place, public = Path(folder), None if key is None else public_key(key)
    text = manifest_bytes(place)
    if public is not None:
        check_signature(place, text, public)
    with tempfile.TemporaryDirectory(prefix="compressor-") as copies:
        manifest = check_package(place, parsed(text, str(place / MANIFEST)), Path(copies))
        if manifest.sample is not None and manifest.runtime != "torch":
            apart(place, f"{__name__}:computed", str(place), copies, manifest.to_json())
    return manifest


def computed(source: str, copies: str, about: dict[str, Any]) -> float:
    """The largest difference of a package's outputs here from the stored ones, in the process of `apart`.

    Raises FileError where it is too large, the runtime is missing or cannot run the network.
    """
    allow(seconds=_SECONDS, memory=_MEMORY)
    try:
        with np.load(Path(copies) / about["sample"]["file"]) as sample:
            return max(compared(Network(Path(copies), threads=1, about=about), sample))
    except ImportError as error:
        runtime = about["runtime"]
        raise FileError(
            f"{source} is for {runtime}, which is missing: pip install 'cnn-compressor[{runtime}]'"
        ) from error
    except Exception as error:  # every runtime has exceptions of its own
        raise FileError(f"{source} does not run as it did where it was exported ({first_line(error)})") from error


def read_portable(place: Path) -> Manifest:
    """The manifest of a package without the files that `compressor tune` added."""
    manifest = read_manifest(place)
    if manifest.runtime != "onnx":
        raise FileError(f"{place} is a package for {manifest.title}: only those of ONNX Runtime are tuned")
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
    for name in manifest.graphs.values():
        if name not in manifest.files:
            raise FileError(f"{place / MANIFEST} names no {shown(name)}: export the package again")
    return manifest


def _check_file(place: Path, name: str, facts: dict[str, Any], copy: Path | None) -> None:
    path = place / name
    with beside(place, name) as file:
        found = copied(file, copy)
    if found["bytes"] != facts["bytes"]:
        raise FileError(f"{path} has {found['bytes']:,} bytes and had {facts['bytes']:,}: copy the package again")
    if found["sha256"] != facts["sha256"]:
        raise FileError(f"{path} was changed since it was exported (its sha256 differs): copy the package again")
