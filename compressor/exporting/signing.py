"""Who exported a package: an ed25519 signature over its manifest, which holds the hash of every file."""

from pathlib import Path
from typing import Any

from compressor.errors import FileError, UsageError, first_line
from compressor.files.paths import beside

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
