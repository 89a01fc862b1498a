"""A network as a chain of segments between the points where one tensor alone carries the flow.

Detachable networks start at such a point, layer-skip routing leaves segments out, PrimeNet replaces the first ones.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from compressor.errors import ModelError
from compressor.graph.program import is_weight, module_of, name_of, program


@dataclass(frozen=True)
class Cut:
    """A point that every path from input to output crosses in one tensor."""

    index: int  # position in the chain; 0 is the input, the last one the output
    shape: tuple[int, ...]  # of the tensor that crosses, without the batch
    made_by: str  # module that made it ("" for the input, or for code outside any submodule)
    read_by: str  # module of the first operator behind it ("" at the output)
    operator: str  # name of the first operator behind it: "conv2d", "relu", "max_pool2d"; "" at the output


class Chain:
    """The cuts of a network of one image tensor, and the segments between them as modules that share its parameters.

    `segment(i, j)` computes the tensor at cut j from the tensor at cut i; its parameters and buffers are the
    network's own objects under the network's own names, so training a segment trains the network.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        """Raises ModelError for a network that cannot be written as one graph with one output."""
        self.program = program(model, example)
        self._graph = self.program.graph
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            ShapeProp(self.program.eval()).propagate(example.to(device).expand(2, *example.shape[1:]))
        self.program.train(model.training)
        self._crossings = _crossings(self._graph)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        return tuple(self._cut(index, node) for index, node in enumerate(self._crossings))

    def _cut(self, index: int, node: fx.Node) -> Cut:
        readers = (user for user in sorted(node.users) if user.op != "output" and user.target is not _SIZE)
        after = next((user for user in readers if not _is_size(user)), None)
        reader, name = ("", "") if after is None else (module_of(after), name_of(after))
        shape = tuple(int(size) for size in node.meta["tensor_meta"].shape[1:])
        return Cut(index, shape, "" if node.op == "placeholder" else module_of(node), reader, name)

    def operators(self, start: int, end: int) -> tuple[str, ...]:
        """Names of the operators between two cuts, in the order they run: "conv2d", "batch_norm", "relu"."""
        first, last = self._crossings[start], self._crossings[end]
        between = (node for node in self._graph.nodes if first < node and node <= last and not is_weight(node))
        return tuple(name_of(node) for node in between if name_of(node) and _is_tensor(node))

    def segment(self, start: int, end: int) -> fx.GraphModule:
        """The part of the network from cut `start` to cut `end` (`start < end`), sharing its parameters."""
        first, last = self._crossings[start], self._crossings[end]
        graph = fx.Graph()
        image = graph.placeholder("x")
        copies: dict[fx.Node, fx.Node] = {first: image}

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:  # a weight, or a size that was taken further up
                batch = _is_batch_size(node)
                copies[node] = graph.call_function(_SIZE, (image, 0)) if batch else graph.node_copy(node, copied)
            return copies[node]

        for node in self._graph.nodes:
            if first < node and node <= last and _is_tensor(node) and not is_weight(node):
                copied(node)
        graph.output(copies[last])
        part = fx.GraphModule(self.program, graph)
        part.train(self.program.training)
        return part


def _crossings(graph: fx.Graph) -> list[fx.Node]:
    """Nodes whose tensor is the only one alive right after them, from the input to the output, in order."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    results = list(output.all_input_nodes)
    if len(inputs) != 1 or len(results) != 1:
        found_both = f"{len(inputs)} inputs and {len(results)} outputs"
        raise ModelError(f"the network has {found_both}; only networks with one of each can be cut")
    place = {node: number for number, node in enumerate(graph.nodes)}
    found, farthest = [], -1
    for node in graph.nodes:
        if is_weight(node) or _is_size(node):
            continue
        if farthest <= place[node] and _is_tensor(node) and not _constant(node):
            found.append(node)
        users = (place[user] for user in node.users if not _is_batch_size(user))
        farthest = max(farthest, max(users, default=-1))
        if node is results[0]:
            break
    return found


def _is_batch_size(node: fx.Node) -> bool:
    """Whether the node asks for the batch's size, which every tensor of the flow can tell."""
    if node.target is not _SIZE or node.args[1] != 0:
        return False
    measured = node.args[0]
    return isinstance(measured, fx.Node) and not is_weight(measured)  # a weight's size belongs to the weight


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val", node.meta.get("example_value")), int | torch.SymInt)


def _constant(node: fx.Node) -> bool:
    """Whether the node computes something from weights alone."""
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if one.op == "placeholder":
            return False
        waiting.extend(other for other in one.all_input_nodes if other not in seen)
        seen.update(one.all_input_nodes)
    return True


def _is_tensor(node: fx.Node) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "shape")


_SIZE = torch.ops.aten.sym_size.int
