"""Take an .onnx file from outside in: a private copy of it and of its weights, each read once, and checked.

All of this runs in the process that `limits.apart` makes, because even reading a graph may take the machine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import FileError, shown
from compressor.exporting.weights import branches, graphs_in
from compressor.files.limits import LARGEST_GIB, allow, check_size
from compressor.files.paths import beside, copied, real_file

_LARGEST_RESULT = 1 << 30  # values of one tensor, 4 GiB of float32; images and feature maps are far below
_MOST_NODES = 30_000  # operators with all functions unfolded; large classifiers have some thousands
_LARGEST_MESSAGE = 1 << 31  # bytes; protobuf's own limit
_SMALL = 1 << 12  # bytes of a constant that may be a shape


@dataclass(frozen=True)
class Taken:
    """A model that was taken in."""

    proto: Any  # onnx.ModelProto
    copy: Path  # of the .onnx file, beside those of its weights
    bytes: int  # of all of them


def take_in(source: Path, folder: Path, most_gib: float = LARGEST_GIB) -> Taken:
    """Copy a model and the files that its weights lie in into a private folder, and check the graph.

    Raises FileError: the file is missing, too large or no ONNX; its weights lie outside of its folder or behind a link;
    it unfolds to too many operators or computes an absurdly large tensor.
    """
    copy = folder / source.name
    with real_file(source) as file:
        size = copied(file, copy)["bytes"]
    check_size(f"{source} has", size, most_gib)
    if size >= _LARGEST_MESSAGE:
        raise FileError(f"{source} has {size / (1 << 30):.1f} GiB in one message, and ONNX allows 2: it is damaged")
    allow(seconds=5 + size / 2e7, memory=6 * size)
    proto = _parsed(copy, source)
    _check_nodes(proto, source)
    for place in sorted(places(proto, source)):
        if (folder / place) == copy:
            raise FileError(f"{source} names itself as the file that its weights lie in: it is damaged")
        with beside(source.parent, place) as file:
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            more = copied(file, target)["bytes"]
        check_size(f"{source} has with {shown(place)}", size := size + more, most_gib)
        allow(seconds=5 + more / 2e8, memory=3 * more)
    _check_results(proto, source)
    return Taken(proto, copy, size)


def places_of(copy: str, source: str) -> list[str]:
    """The files in which the weights of a model lie that was copied already; raises FileError as `take_in` does."""
    proto = _parsed(Path(copy), Path(source))
    _check_nodes(proto, Path(source))
    return sorted(places(proto, Path(source)))


def places(proto: Any, source: Path) -> set[str]:
    """The files in which a model's weights lie, as it names them. Raises FileError where a tensor names several."""
    import onnx

    found = set()
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            keys = [entry.key for entry in tensor.external_data]
            if len(keys) != len(set(keys)) or "location" not in keys:
                name = shown(tensor.name, 60) or "a tensor"
                raise FileError(f"{source} says twice or not at all where the values of {name} lie: export it again")
            found |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return found


def _parsed(copy: Path, source: Path) -> Any:
    import onnx

    try:
        return onnx.ModelProto.FromString(copy.read_bytes())
    except MemoryError:
        raise
    except Exception as error:  # protobuf has kinds of its own
        reason = "it is empty" if not copy.stat().st_size else "it is cut off, damaged or of another kind"
        raise FileError(f"{source} cannot be read as ONNX: {reason}") from error


def _tensors(proto: Any) -> Iterator[Any]:
    """Every tensor of a model, also in the branches of an If, in functions and in training graphs."""
    attributes = [each for function in proto.functions for each in function.attribute_proto]
    training = [graph for each in proto.training_info for graph in (each.algorithm, each.initialization)]
    for outer in (proto.graph, *training, *proto.functions, *branches(attributes)):
        for graph in graphs_in(outer):
            attributes += [each for node in graph.node for each in node.attribute]
            yield from getattr(graph, "initializer", ())
            yield from _dense(getattr(graph, "sparse_initializer", ()))
    for attribute in attributes:
        yield from attribute.tensors
        if attribute.HasField("t"):
            yield attribute.t
        yield from _dense(attribute.sparse_tensors)
        if attribute.HasField("sparse_tensor"):
            yield from _dense([attribute.sparse_tensor])


def _dense(tensors: Any) -> Iterator[Any]:
    """The tensors that sparse ones are made of."""
    for each in tensors:
        yield from (each.values, each.indices)


def _check_nodes(proto: Any, source: Path) -> None:
    """Raise FileError for a graph of too many operators, those inside functions counted at every call."""
    functions = {(each.domain, each.name): each for each in proto.functions}
    known: dict[tuple[str, str], int] = {}

    def count(nodes: Any) -> int:
        total = 0
        for node in nodes:
            called = (node.domain, node.op_type)
            total += 1 + (inside(called) if called in functions else 0)
            total += sum(count(graph.node) for graph in branches(node.attribute))
        return total

    def inside(called: tuple[str, str]) -> int:
        if called not in known:
            known[called] = _MOST_NODES  # of one that calls itself
            known[called] = count(functions[called].node)
        return known[called]

    try:
        total = count(proto.graph.node)
    except RecursionError:
        total = _MOST_NODES + 1
    if total > _MOST_NODES:
        raise FileError(
            f"{source} unfolds to more than {_MOST_NODES:,} operators: it is damaged, or made to run without end"
        )


def _check_results(proto: Any, source: Path) -> None:
    """Raise FileError where the shape of an absurdly large tensor follows from the file alone."""
    import onnx

    for tensor in _tensors(proto):
        if len(tensor.raw_data) > _SMALL:  # its numbers do not matter, and shape inference copies them
            tensor.ClearField("raw_data")
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except MemoryError:
        raise
    except Exception:  # so many operators, so many ways to fail; ONNX Runtime says what is wrong
        return
    shapes = [entry.type.tensor_type.shape.dim for entry in (*graph.value_info, *graph.output)]
    known = [[dim.dim_value for dim in shape] for shape in shapes if all(dim.HasField("dim_value") for dim in shape)]
    largest = max((math.prod(sizes) for sizes in known if sizes), default=0)
    if largest > _LARGEST_RESULT:
        raise FileError(
            f"{source} computes a tensor of {largest:.1e} values: it is damaged, or made to fill the memory"
        )
