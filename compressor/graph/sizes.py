"""Sizes that an exported graph holds as constants, taken from its tensors instead, so that they follow an edit.

`x.view(b, 2, c // 2, h, w)` is written down as the numbers that it came to. Here the last size of every run of
dimensions that a reshape joins or splits is computed from what the input has there, as the user's code did; which one
it is agrees with how identities go through a reshape (see rules_shapes). Nodes need their example's `meta["val"]`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compressor.graph.rules_shapes import regrouped

Shape = tuple[int, ...]


def reshape(graph: fx.Graph, node: fx.Node) -> None:
    before, after = _shape(node.args[0]), _shape(node)
    sizes = list(node.args[1])  # type: ignore[arg-type]
    if before is None or after is None or -1 in sizes:
        return
    for sources, targets in regrouped(before, after):
        if not isinstance(sizes[targets[-1]], fx.Node):
            held = [_size(graph, node.args[0], dim) for dim in sources]
            sizes[targets[-1]] = _quotient(graph, held, [sizes[dim] for dim in targets[:-1]])
    node.update_arg(1, sizes)


def expand(graph: fx.Graph, node: fx.Node) -> None:
    """Dimensions that are not repeated stay as they are."""
    before, sizes = _shape(node.args[0]), list(node.args[1])  # type: ignore[arg-type]
    if before is not None:
        added = len(sizes) - len(before)
        kept = [-1 if dim >= added and size == before[dim - added] else size for dim, size in enumerate(sizes)]
        node.update_arg(1, kept)


def unflatten(graph: fx.Graph, node: fx.Node) -> None:
    sizes = list(node.args[2])  # type: ignore[arg-type]
    if -1 not in sizes and not isinstance(sizes[-1], fx.Node):
        node.update_arg(2, [*sizes[:-1], _quotient(graph, [_size(graph, node.args[0], node.args[1])], sizes[:-1])])


def split(graph: fx.Graph, node: fx.Node) -> None:
    """Into equal parts, which stay equal."""
    before, dim = _shape(node.args[0]), node.args[2] if len(node.args) > 2 else 0
    if before is None or not isinstance(node.args[1], int) or before[dim] % node.args[1]:  # type: ignore[index]
        return
    node.update_arg(1, _quotient(graph, [_size(graph, node.args[0], dim)], [before[dim] // node.args[1]]))  # type: ignore[index]


def split_with_sizes(graph: fx.Graph, node: fx.Node) -> None:
    sizes, dim = list(node.args[1]), node.args[2] if len(node.args) > 2 else 0  # type: ignore[arg-type]
    if len(sizes) > 1 and len(set(sizes)) == 1 and isinstance(sizes[0], int):
        part = _quotient(graph, [_size(graph, node.args[0], dim)], [len(sizes)])
        node.update_arg(1, [part] * len(sizes))


def layer_norm(graph: fx.Graph, node: fx.Node) -> None:
    """Over as many channels as it has weights for."""
    weight = node.args[2] if len(node.args) > 2 else None
    if isinstance(weight, fx.Node):
        node.update_arg(1, [_size(graph, weight, dim) for dim in range(len(node.args[1]))])  # type: ignore[arg-type]


def _shape(node: Any) -> Shape | None:
    """The example's shape; a size that is free has the example's number, at least 2."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else int(size.node.hint or 2) for size in value.shape)


def _size(graph: fx.Graph, node: Any, dim: Any) -> fx.Node:
    size = graph.call_function(torch.ops.aten.sym_size.int, (node, dim))
    size.meta["val"] = _shape(node)[dim] if _shape(node) else 0  # type: ignore[index]
    return size


def _quotient(graph: fx.Graph, held: Sequence[fx.Node], by: Sequence[Any]) -> fx.Node:
    """The product of some sizes divided by that of others."""
    result = held[0]
    for size in held[1:]:
        result = _computed(graph, operator.mul, result, size)
    for size in by:
        result = result if size == 1 else _computed(graph, operator.floordiv, result, size)
    return result


def _computed(graph: fx.Graph, function: Callable[[int, int], int], left: fx.Node, right: Any) -> fx.Node:
    node = graph.call_function(function, (left, right))
    other = right.meta["val"] if isinstance(right, fx.Node) else right
    node.meta["val"] = function(int(left.meta["val"]), int(other))
    return node
