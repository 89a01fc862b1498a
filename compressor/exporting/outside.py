"""Check an .onnx file before ONNX Runtime opens it: that it reads its own folder only, and fits into a machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.errors import FileError

_LARGEST_RESULT = 1 << 30  # values of one tensor, 4 GiB of float32; images and feature maps are far below
_SMALL = 1 << 12  # bytes of a constant that may be a shape


def check_graph(path: Path) -> None:
    """Raise FileError where a model's weights lie outside of its folder, or a constant of it is absurdly large.

    A file that is no ONNX at all passes: ONNX Runtime says what is wrong with it.
    """
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf has kinds of its own
        return
    for tensor in _tensors(proto):
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]
        if tensor.data_location == onnx.TensorProto.EXTERNAL or places:
            _check_place(path, places[-1] if places else "")
    largest = _largest_result(proto)
    if largest > _LARGEST_RESULT:
        raise FileError(f"{path} computes a tensor of {largest:.1e} values: it is damaged, or made to fill the memory")


def _check_place(path: Path, place: str) -> None:
    folder = path.resolve().parent
    shown = place if place.isprintable() else repr(place)[1:-1]
    try:
        target = (folder / place).resolve()
        inside = bool(place) and not Path(place).is_absolute() and target.is_relative_to(folder)
        there = inside and target.is_file()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have
        inside, there = False, False
    if not inside:
        raise FileError(
            f"{path} wants weights from outside of its folder ({shown[:160] or 'no name'}): a model that is whole has "
            "them beside it"
        )
    if not there:
        raise FileError(f"{path} needs the file {shown[:160]} beside it, which is not there: copy both")


def _tensors(proto: Any) -> Iterator[Any]:
    """Every tensor of a model, also in the branches of an If, in functions and in training graphs."""
    for graph in (proto.graph, *(each.algorithm for each in proto.training_info)):
        yield from _tensors_of_graph(graph)
    for function in proto.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from attribute.tensors
        if attribute.HasField("t"):
            yield attribute.t
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors_of_graph(graph)


def _largest_result(proto: Any) -> int:
    """Values of the largest tensor whose shape follows from the file alone; 0 where nothing can be told."""
    import onnx

    for tensor in _tensors(proto):
        if len(tensor.raw_data) > _SMALL:  # its numbers do not matter, and shape inference copies them
            tensor.ClearField("raw_data")
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception:  # so many operators, so many ways to fail
        return 0
    shapes = [entry.type.tensor_type.shape.dim for entry in (*graph.value_info, *graph.output)]
    known = [[dim.dim_value for dim in shape] for shape in shapes if all(dim.HasField("dim_value") for dim in shape)]
    return max((math.prod(sizes) for sizes in known if sizes), default=0)
