"""What ONNX Runtime gives for every value of a graph on some images: shapes, constants, and what to compare with."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import FileError, UsageError, first_line, listed
from compressor.exporting.onnx_in.nodes import Values
from compressor.exporting.runtime import noise, open_session
from compressor.report import units
from compressor.report.manifest import Array

_FREE_BATCHES = 2, 3  # where the file leaves the batch size open: what differs between the two depends on it
_AT_ONCE = 16  # results that are in memory together
_SAMPLE = 4096
_SIZES = frozenset({"Shape", "Size"})  # of values that depend on images, what does not


@dataclass(frozen=True)
class Graph:
    """A graph whose values are known."""

    outputs: list[str]
    nodes: list[Any]  # those that depend on the images and lead to an output, in the graph's order
    values: Values
    images: Array
    results: Mapping[str, Array]  # of those nodes: whole where they are outputs, else `sampled`
    fixed: bool  # whether the file names its batch size


def evaluate(path: Path, named: Path, shape: tuple[int, ...] | None) -> Graph:
    """Run the graph of a private copy of a file on random images; `named` is what messages call it.

    Raises FileError for other inputs than one of images, and for numbers in other than float32; UsageError where
    the images' size is left open and `shape` does not say it.
    """
    import onnx
    from onnx import inliner

    proto = onnx.load(str(path), load_external_data=False)
    proto = inliner.inline_local_functions(proto) if proto.functions else proto
    graph = proto.graph
    opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    weights = {each.name: onnx.numpy_helper.to_array(each, str(path.parent)) for each in graph.initializer}
    _check_kinds(weights, named)
    image, sizes, fixed = _image(graph, weights, named, shape)
    outputs = [each.name for each in graph.output]
    nodes = list(graph.node)  # the very objects, which are told apart by their ids
    moving = _moving(nodes, image)
    moved = {name for node in nodes if id(node) in moving for name in node.output}
    if not moved.issuperset(outputs):
        constant = listed(name for name in outputs if name not in moved)
        raise FileError(f"{named} gives {constant} whatever the images are: export it without that output")
    needed = _needed(nodes, moving, outputs)
    folded = {name for node in nodes if id(node) not in moving for name in node.output if name}
    asked = {name for node in needed for name in node.input} & folded
    kept = [name for node in needed for name in node.output if name]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in (*kept, *sorted(asked)))
    whole = path.with_name("values.onnx")
    onnx.save(proto, str(whole))
    session = open_session(whole, level="off", named=named)
    batch = sizes[0] if fixed else _FREE_BATCHES[0]
    images = noise((batch, *sizes[1:]))
    constants = {**weights, **_run(session, sorted(asked), image, images, named)}
    ends, shapes, results = set(outputs), {image: images.shape}, dict[str, Array]()
    for place in range(0, len(kept), _AT_ONCE):
        for name, found in _run(session, kept[place : place + _AT_ONCE], image, images, named).items():
            shapes[name], results[name] = found.shape, found if name in ends else sampled(found)
    varying: set[str] = set()
    if not fixed and asked:
        others = _run(session, sorted(asked), image, noise((_FREE_BATCHES[1], *sizes[1:])), named)
        varying = {name for name, found in others.items() if not _equal(found, constants[name])}
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in needed:
        for name in node.input:
            readers[name].append(node)
    values = Values(image, opset, batch, constants, varying, shapes, readers)
    return Graph(outputs, needed, values, images, results, fixed)


def sampled(values: Array) -> Array:
    """Some thousand of the values, evenly over all."""
    return values.ravel()[:: max(1, values.size // _SAMPLE)].copy()


def _check_kinds(weights: Mapping[str, Array], named: Path) -> None:
    kinds = sorted(
        {each.dtype.name for each in weights.values() if each.ndim > 1} & {"float16", "bfloat16", "int8", "uint8"}
    )
    if kinds:
        raise FileError(
            f"{named} has weights in {', '.join(kinds)}: give the network in float32, before it was made smaller"
        )


def _image(
    graph: Any, weights: Mapping[str, Array], named: Path, shape: tuple[int, ...] | None
) -> tuple[str, tuple[int, ...], bool]:
    """The name of the input, its sizes with the batch first, and whether the file names the batch size."""
    import onnx

    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        found = listed(each.name for each in inputs)
        raise FileError(
            f"{named} takes other inputs than one tensor of float32 ({found or 'none'}): only that is opened"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    if len(sizes) < 2:
        raise FileError(f"{named} takes a tensor of {len(sizes)} dimensions: no batch of images")
    whole = tuple(sizes[1:]) if shape is None else shape
    if len(whole) != len(sizes) - 1 or any(known not in (None, size) for known, size in zip(sizes[1:], whole)):
        wanted = units.shape(sizes[1:])
        raise UsageError(f"{named} takes images of {wanted}, not {units.shape(whole)}: change `input`")
    if None in whole:
        raise UsageError(f"{named} leaves the size of its images open: give `input`, such as `input` 3x224x224")
    return inputs[0].name, (sizes[0] or _FREE_BATCHES[0], *whole), sizes[0] is not None


def _moving(nodes: list[Any], image: str) -> set[int]:
    """Ids of the nodes whose values depend on the images, or may: what graphs inside a node read is not looked at."""
    moving, found = {image}, set()
    for node in nodes:
        inside = any(each.HasField("g") or each.graphs for each in node.attribute)
        if inside or (node.op_type not in _SIZES and moving.intersection(node.input)):
            moving.update(node.output)
            found.add(id(node))
    return found


def _needed(nodes: list[Any], moving: set[int], outputs: list[str]) -> list[Any]:
    """Those of them that lead to an output, in their order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if id(node) in moving and wanted.intersection(node.output):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _run(session: Any, names: list[str], image: str, images: Array, named: Path) -> dict[str, Array]:
    if not names:
        return {}
    try:
        return dict(zip(names, session.run(names, {image: images}), strict=True))
    except Exception as error:  # onnxruntime's exceptions share no class of their own
        raise FileError(
            f"{named} does not run on images of {units.shape(images.shape[1:])} ({first_line(error)})"
        ) from error


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other))
