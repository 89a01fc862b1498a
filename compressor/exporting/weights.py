"""The one file in which a package keeps its weights: every tensor once, where it can be mapped into memory as it is.

ONNX Runtime maps such a file and reads the weights in place, so that several graphs and several processes that read the
same file share one copy of it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from compressor.report.manifest import Array

ALIGNMENT = 4096  # bytes; a page, the unit in which files are mapped
_SMALLEST = 1024  # bytes; what is smaller stays in the graph, as sizes and axes must


class WeightsFile:
    """The file while it is written: give it the tensors of one graph after another, then close it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._places: dict[bytes, tuple[int, int]] = {}  # sha256 -> offset, length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def take(self, model: Any, folder: Path) -> None:
        """Move the weights of a model into the file; `folder` is where those lie that are in a file already.

        The model's graphs then refer to this file by its name.
        """
        for graph in graphs_in(model.graph):
            _lift_constants(graph)
            for tensor in graph.initializer:
                data = tensor_bytes(tensor, folder)
                if len(data) >= _SMALLEST:
                    self._refer(tensor, *self._put(data))
                elif tensor.data_location == tensor.EXTERNAL:
                    _inline(tensor, data)
        self._file.flush()

    def _put(self, data: memoryview) -> tuple[int, int]:
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.write(bytes(offset - self._file.tell()))
            self._file.write(data)
            self._places[digest] = offset, len(data)
        return self._places[digest]

    def _refer(self, tensor: Any, offset: int, length: int) -> None:
        _clear(tensor)
        tensor.data_location = tensor.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))


def graphs_in(graph: Any) -> Iterator[Any]:
    """A graph (or a function, which has nodes too) and the branches in it, at any depth."""
    yield graph
    for node in graph.node:
        for branch in branches(node.attribute):
            yield from graphs_in(branch)


def branches(attributes: Any) -> list[Any]:
    """The graphs that a node's attributes hold."""
    return [graph for each in attributes for graph in (*([each.g] if each.HasField("g") else ()), *each.graphs)]


def tensor_bytes(tensor: Any, folder: Path) -> memoryview:
    """A tensor's values as they lie in memory; those in a file are mapped and not read."""
    import onnx

    if tensor.data_location == tensor.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(place.get("offset", 0)), int(place.get("length", -1))
        file = folder / place["location"]
        if length == 0 or (length < 0 and file.stat().st_size == offset):
            return memoryview(b"")
        count = length if length > 0 else file.stat().st_size - offset
        mapped: Array = np.memmap(file, np.uint8, "r", offset, (count,))
        return mapped.data
    if tensor.raw_data:
        return memoryview(tensor.raw_data)
    return memoryview(onnx.numpy_helper.to_array(tensor).tobytes())


def _lift_constants(graph: Any) -> None:
    """Make large constants initializers, which alone may lie outside the graph."""
    kept = []
    for node in graph.node:
        value = next((each for each in node.attribute if each.name == "value"), None)
        if node.op_type != "Constant" or value is None or value.t.ByteSize() < _SMALLEST:
            kept.append(node)
            continue
        graph.initializer.add().CopyFrom(value.t)
        graph.initializer[-1].name = node.output[0]
    if len(kept) < len(graph.node):
        copies = [type(node).FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)


def _inline(tensor: Any, data: memoryview) -> None:
    _clear(tensor)
    tensor.raw_data = bytes(data)
    tensor.data_location = tensor.DEFAULT


def _clear(tensor: Any) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
