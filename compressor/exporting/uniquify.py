"""Names that are unique over a whole model: ONNX Runtime takes some twice when it saves a graph with branches."""

from collections.abc import Mapping
from typing import Any

from compressor.exporting.weights import branches


def uniquify(graph: Any) -> int:
    """Rename values of inner graphs whose names are taken, here or in another branch; returns how many.

    The names of the outermost graph stay, its inputs and outputs among them. Changes the graph in place.

    Example:
        model = onnx.load("optimized.onnx")
        uniquify(model.graph)                   # 18 for a network with four sub-models
    """
    taken: set[str] = set()
    return _rename(graph, {}, taken)


def _rename(graph: Any, outer: Mapping[str, str], taken: set[str]) -> int:
    names, changed = dict(outer), 0
    for name in _defined(graph):
        names[name] = _free(name, taken)
        changed += names[name] != name
    for entry in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        entry.name = names.get(entry.name, entry.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
        changed += sum(_rename(branch, names, taken) for branch in branches(node.attribute))
    return changed


def _defined(graph: Any) -> list[str]:
    """The names that a graph itself gives, each once, in order."""
    given = [entry.name for entry in (*graph.input, *graph.initializer)]
    given += [value for node in graph.node for value in node.output if value]
    return list(dict.fromkeys(given))


def _free(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    taken.add(found)
    return found
