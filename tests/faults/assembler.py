"""Pickles written instruction by instruction, and the two forms of file that torch.save puts a pickle into."""

import io
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

NONE, TRUE, FALSE, EMPTY = b"N", b"\x88", b"\x89", b")"


def program(body: bytes, protocol: int = 2) -> bytes:
    """A whole pickle that leaves what `body` leaves."""
    return b"\x80" + bytes([protocol]) + body + b"."


def name(module: str, attribute: str) -> bytes:
    """Look something up, as protocols up to 3 do."""
    return f"c{module}\n{attribute}\n".encode()


def stacked_name(module: str, attribute: str) -> bytes:
    """Look something up, as protocol 4 does; the attribute may have dots."""
    return text(module) + text(attribute) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    """Call something."""
    return function + tup(*arguments) + b"R"


def new(kind: bytes, *arguments: bytes) -> bytes:
    """Make an instance without its constructor."""
    return kind + tup(*arguments) + b"\x81"


def build(instance: bytes, state: bytes) -> bytes:
    """Give an instance its state."""
    return instance + state + b"b"


def text(value: str) -> bytes:
    """A string."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def data(value: bytes) -> bytes:
    """Bytes, as protocol 3 has them."""
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    """An integer of any size up to 255 bytes."""
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def tup(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def lst(*items: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(items) + b"e"


def dic(*items: bytes) -> bytes:
    """A dict of keys and values in turn."""
    return b"}(" + b"".join(items) + b"u"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """A reference to numbers in the file."""
    return tup(text("storage"), name("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(held: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A tensor over a storage."""
    shape, steps = (tup(*(number(each) for each in sizes)) for sizes in (size, stride))
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), held, number(offset), shape, steps, FALSE, hooks)


def zip_of(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, **options: Any) -> None:
    """A file of torch.save's form around a pickle."""
    everything = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **(records or {})}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for record, value in everything.items():
            archive.writestr(f"archive/{record}", value)


def legacy_of(path: Path, pickled: bytes, place: int = 3) -> None:
    """A file of the form before torch 1.6, with the n-th of its five pickles replaced."""
    file = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    parts = []
    for _ in range(5):
        start = file.tell()
        list(pickletools.genops(file))
        parts.append(file.getvalue()[start : file.tell()])
    rest = file.getvalue()[file.tell() :]
    parts[place] = pickled
    path.write_bytes(b"".join(parts) + rest)
