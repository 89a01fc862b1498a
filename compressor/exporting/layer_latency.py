"""Where the time of an exported network goes: milliseconds of each layer in the graph that ONNX Runtime really runs."""

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from compressor.exporting.measure import node_times
from compressor.exporting.runtime import OnnxModel, noise

_SECONDS = 0.3
_LAYERS = ("Conv", "Gemm", "MatMul")


def layer_latency(model: OnnxModel, input_shape: tuple[int, ...], threads: int) -> dict[str, float]:
    """Milliseconds of every layer with weights, by its dotted name, and of everything else by "(operator)".

    ONNX Runtime's profiler measures one image; what is fused into a layer, as activations are, counts for it.
    """
    feeds = {**model.feeds, model.input_name: noise((1, *input_shape))}
    times = node_times(str(model.path), feeds, threads, _SECONDS)
    return by_layer(onnx.load(model.path, load_external_data=False).graph, times)


def by_layer(graph: Any, times: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    """The times of the nodes that run, name -> (operator, ms), by the layers of the graph as it was exported."""
    nodes = list(_nodes(graph))
    named = {node.name: node for node in nodes}
    made_by = {output: node for node in nodes for output in node.output}
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    found: dict[str, float] = {}
    for name, (operator, ms) in times.items():
        plain = name.removesuffix("_nchwc")
        node = named.get(plain) or made_by.get(plain)  # a fused node has the name of its last output
        while node is not None and any(part in operator for part in _LAYERS) and _weight(node, weights) is None:
            node = made_by.get(node.input[0]) if node.input else None
        weight = None if node is None else _weight(node, weights)
        layer = f"({operator})" if weight is None else weight.rpartition(".")[0] or plain
        found[layer] = found.get(layer, 0.0) + ms
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _weight(node: Any, weights: set[str]) -> str | None:
    """The name of a layer's weight."""
    if not any(part in node.op_type for part in _LAYERS):
        return None
    return next((name for name in node.input if name in weights), None)


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
