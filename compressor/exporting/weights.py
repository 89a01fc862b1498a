"""The one file in which a package keeps its weights: every tensor once, where it can be mapped into memory as it is.

ONNX Runtime maps such a file and reads the weights in place, so that several graphs and several processes that read the
same file share one copy of it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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

    def take(self, model: Any) -> None:
        """Move the weights of a model (onnx_ir.Model) into the file, to which it then refers by its name."""
        import onnx_ir as ir
        from onnx_ir.passes.common import LiftConstantsToInitializersPass

        LiftConstantsToInitializersPass(size_limit=_SMALLEST // 8)(model)  # those alone may lie outside the graph
        for graph in model.graphs():
            for value in graph.initializers.values():
                held = value.const_value
                if held.nbytes >= _SMALLEST:
                    place, sizes = self._put(held.tobytes()), {"shape": held.shape, "name": value.name}
                    value.const_value = ir.ExternalTensor(
                        self.path.name, *place, held.dtype, **sizes, base_dir=self.path.parent
                    )
                elif isinstance(held, ir.ExternalTensor):
                    value.const_value = ir.Tensor(held.numpy().copy(), held.dtype, name=value.name)
        self._file.flush()

    def _put(self, data: bytes) -> tuple[int, int]:
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.write(bytes(offset - self._file.tell()))
            self._file.write(data)
            self._places[digest] = offset, len(data)
        return self._places[digest]


def graphs_in(graph: Any) -> Iterator[Any]:
    """A graph (or a function, which has nodes too) and the branches in it, at any depth."""
    yield graph
    for node in graph.node:
        for branch in branches(node.attribute):
            yield from graphs_in(branch)


def branches(attributes: Any) -> list[Any]:
    """The graphs that a node's attributes hold."""
    return [graph for each in attributes for graph in (*([each.g] if each.HasField("g") else ()), *each.graphs)]
