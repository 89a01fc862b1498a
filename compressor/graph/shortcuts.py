"""Where the paths of a residual block meet, and the block without its main branch."""

import operator
from dataclasses import dataclass

import torch
from torch import fx

from compressor.graph.program import is_weight, operator_of


@dataclass(frozen=True)
class Meeting:
    """The last sum of a graph, and its two operands."""

    total: fx.Node
    shortcut: fx.Node  # the one that is computed with fewer layers
    branch: fx.Node


def is_layer(node: fx.Node) -> bool:
    """Whether an operator multiplies with weights or matrices: what costs MACs."""
    return operator_of(node).is_layer


def meeting(graph: fx.Graph) -> Meeting | None:
    """Where two paths meet last; None where no sum is, or both are computed with equally many layers."""
    total = next((node for node in reversed(graph.nodes) if is_sum(node)), None)
    if total is None:
        return None
    left, right = total.args[0], total.args[1]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    fewer = len(_layers(left)) - len(_layers(right))
    if fewer == 0:
        return None
    return Meeting(total, left, right) if fewer < 0 else Meeting(total, right, left)


def own_shortcut(body: fx.GraphModule) -> fx.Graph | None:
    """The graph of a residual block without its main branch; None where the last thing that meets is no sum.

    Of the two operands of the block's last addition the one with fewer convolutions and linear layers stays. A path
    with a batch norm is not taken: the maps that reach it from shallower depths have other statistics than those it
    averages, and images that leave early were then classified far worse than in training.
    """
    met = meeting(body.graph)
    if met is None:
        return None
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(body.graph, mapping))
    mapping[met.total].replace_all_uses_with(mapping[met.shortcut])
    graph.eliminate_dead_code()
    if any(operator_of(node).kind == "batch norm" for node in graph.nodes):
        return None
    remaining = sum(is_layer(node) for node in graph.nodes)
    return graph if remaining < sum(is_layer(node) for node in body.graph.nodes) else None


_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, operator.add)


def is_sum(node: fx.Node) -> bool:
    """Whether the node adds two tensors that are both computed from the input."""
    if node.target not in _SUMS or node.kwargs:
        return False
    operands = node.args[:2]
    return all(isinstance(each, fx.Node) and not is_weight(each) for each in operands)


def _layers(node: fx.Node) -> set[fx.Node]:
    """The convolutions and linear layers that the node is computed with."""
    waiting, seen = [node], {node}
    while waiting:
        for other in waiting.pop().all_input_nodes:
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return {each for each in seen if is_layer(each)}
