"""Batch norms that every sub-model has its own statistics for: one shared convolution, a row of scales and shifts each.

Folded into its convolution, such a norm would make the weights of every sub-model others. Kept beside it, it is a table
with one row for each sub-model, from which the graph takes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compressor.graph.program import operator_of

ROW = "row"  # name of the input that says which


@dataclass(frozen=True, eq=False)
class Affine:
    """A batch norm in evaluation: a scale and a shift for each channel."""

    scale: Tensor
    shift: Tensor


@torch.no_grad()
def batch_norms(part: fx.GraphModule) -> list[Affine]:
    """The batch norms of a graph that keep statistics, in the order they run."""
    found = []
    for node in part.graph.nodes:
        if _keeps_statistics(node):
            weight, bias, mean, variance = (_tensor(part, each) for each in node.args[1:5])
            assert mean is not None and variance is not None
            scale = torch.rsqrt(variance + float(node.args[7]))
            scale = scale if weight is None else scale * weight
            shift = -mean * scale if bias is None else bias - mean * scale
            found.append(Affine(scale.clone(), shift.clone()))
    return found


def with_rows(part: fx.GraphModule, rows: Sequence[Sequence[Affine]]) -> fx.GraphModule:
    """The graph with a table in the place of each batch norm that differs; `rows` holds, for each norm, every model's.

    The result takes the model's number, int64 (1,), as a second input where there is such a norm.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(part.graph, mapping)
    graph.output(result)
    norms = [mapping[node] for node in part.graph.nodes if _keeps_statistics(node)]
    differing = [(node, row) for node, row in zip(norms, rows, strict=True) if _differ(row)]
    root = nn.Module()
    for name, tensor in _tensors(part).items():
        _put(root, name, tensor)
    if differing:
        image = next(node for node in graph.nodes if node.op == "placeholder")
        with graph.inserting_after(image):
            chosen = graph.placeholder(ROW)
    for number, (node, row) in enumerate(differing):
        ones = (1,) * (len(node.meta["tensor_meta"].shape) - 2)
        with graph.inserting_before(node):
            value = node.all_input_nodes[0]
            for name, function in (("scale", torch.ops.aten.mul.Tensor), ("shift", torch.ops.aten.add.Tensor)):
                table = torch.stack([getattr(each, name).view(-1, *ones) for each in row])
                _put(root, f"{name}_{number}", table)
                held = graph.create_node("get_attr", f"{name}_{number}")
                picked = graph.call_function(torch.ops.aten.index_select.default, (held, 0, chosen))
                value = graph.call_function(function, (value, picked))
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module = fx.GraphModule(root, graph)
    module.eval()
    return module


def _keeps_statistics(node: fx.Node) -> bool:
    return operator_of(node).kind == "batch norm" and isinstance(node.args[3], fx.Node)


def _differ(rows: Sequence[Affine]) -> bool:
    first = rows[0]
    return any(not torch.equal(each.scale, first.scale) or not torch.equal(each.shift, first.shift) for each in rows)


def _tensors(part: fx.GraphModule) -> dict[str, Tensor]:
    named = (*part.named_parameters(remove_duplicate=False), *part.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in named}


def _tensor(part: fx.GraphModule, node: object) -> Tensor | None:
    return _tensors(part)[str(node.target)] if isinstance(node, fx.Node) else None


def _put(root: nn.Module, name: str, tensor: Tensor) -> None:
    *path, leaf = name.split(".")
    owner = root
    for each in path:
        if each not in owner._modules:
            owner.add_module(each, nn.Module())
        owner = owner.get_submodule(each)
    owner.register_buffer(leaf, tensor)
