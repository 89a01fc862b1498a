"""Safetensors files whose header lies."""

import json
from pathlib import Path
from typing import Any

from tests.faults.hostile_pickles import Make


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> Make:
    """A header, as JSON unless it is bytes, and numbers behind it; a large header is given as what makes it."""

    def make(path: Path, canary: Path) -> None:
        given = header() if callable(header) else header
        encoded = given if isinstance(given, bytes) else json.dumps(given).encode()
        path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + body)

    return make


def _entries(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


_ONE = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'

HEADERS: dict[str, Make] = {
    "header_longer_than_file": safetensors(_entries(), bytes(16), 10**6),
    "header_of_4_GiB": safetensors(_entries(), bytes(16), 2**32 - 1),
    "header_cut": safetensors(b'{"w": {"dtype": "F32", "sha'),
    "header_no_text": safetensors(b'{"\xff\xfe": {}}'),
    "header_of_lists": safetensors({"w": [1, 2]}),
    "header_deep": safetensors(lambda: b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "header_duplicates": safetensors(b'{"w":%s,"w":%s}' % (_ONE, _ONE.replace(b"1]", b"2]")), b"ab"),
    "unknown_type": safetensors(_entries(dtype="F1024"), bytes(16)),
    "offsets_beyond": safetensors(_entries(data_offsets=[0, 10**12]), bytes(16)),
    "offsets_reversed": safetensors(_entries(data_offsets=[16, 0]), bytes(16)),
    "shape_overflow": safetensors(_entries(shape=[2**62, 2**62]), bytes(16)),
    "shape_negative": safetensors(_entries(shape=[-4]), bytes(16)),
    "shape_and_size_differ": safetensors(_entries(shape=[400]), bytes(16)),
    "hole": safetensors({**_entries(), "v": {"dtype": "F32", "shape": [1], "data_offsets": [99, 103]}}, bytes(103)),
    "metadata_no_text": safetensors({"__metadata__": {"a": {"b": 1}}, **_entries()}, bytes(16)),
    "no_tensors": safetensors({}),
    "many_names": safetensors(lambda: {f"layer{i}.weight": _entries()["w"] for i in range(70_000)}, bytes(16)),
    "long_names": safetensors(lambda: {"w" * (17 << 20): _entries()["w"]}, bytes(16)),
    "many_equal_names": safetensors(lambda: b"{" + b",".join(b'"w":%s' % _ONE for _ in range(70_000)) + b"}", b"a"),
    "metadata_of_many_names": safetensors(lambda: {"__metadata__": {str(i): "" for i in range(70_000)}}),
}
