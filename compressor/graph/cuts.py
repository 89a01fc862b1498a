"""Where a network may be cut: it is a chain of segments between points where one tensor alone carries the flow.

Detachable networks start at such a point, layer-skip routing leaves segments out, PrimeNet replaces the first ones.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from compressor.errors import ModelError
from compressor.graph.program import is_weight, module_of, name_of, operator_of, program
from compressor.graph.tensors import device_of

Norms = Literal["stats", "switchable", "shared"]


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
        with torch.no_grad():
            ShapeProp(self.program.eval()).propagate(example.to(device_of(model)).expand(2, *example.shape[1:]))
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
        between = (node for node in self._graph.nodes if first < node and node <= last)
        graph = part_of(first, (node for node in between if _is_tensor(node) and not is_weight(node)), last)
        part = fx.GraphModule(self.program, graph)
        part.train(self.program.training)
        return part


def part_of(start: fx.Node, nodes: Iterable[fx.Node], end: fx.Node) -> fx.Graph:
    """A graph of these operators, in their order, from the one tensor that enters to the one that leaves."""
    graph = fx.Graph()
    image = graph.placeholder("x")
    copies: dict[fx.Node, fx.Node] = {start: image}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a weight, or a size that was taken further up
            batch = is_batch_size(node)
            copies[node] = graph.call_function(_SIZE, (image, 0)) if batch else graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copied(node)
    graph.output(copies[end])
    return graph


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
        users = (place[user] for user in node.users if not is_batch_size(user))
        farthest = max(farthest, max(users, default=-1))
        if node is results[0]:
            break
    return found


def is_batch_size(node: fx.Node) -> bool:
    """Whether the node asks for the batch's size, which every tensor of the flow can tell."""
    if node.target is not _SIZE or node.args[1] != 0:
        return False
    measured = node.args[0]
    return isinstance(measured, fx.Node) and not _constant(measured)  # a weight's size belongs to the weight


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


def tail(chain: Chain, base: nn.Module, start: int, end: int, norms: Norms) -> fx.GraphModule:
    """The base between two cuts, `start` to `end`, from layers that are the base's own objects.

    With `norms` "stats", batch norms are new ones with statistics of their own and the base's scale and shift; with
    "switchable" these are their own too; with "shared" they are the base's. New ones start as copies.
    """
    part = chain.segment(start, end)
    use_weights_of_(part, base)
    if norms != "shared":
        _give_own_norms_(part, norms == "switchable")
    call_layers_(part, base)
    return part


def call_layers_(part: fx.GraphModule, base: nn.Module) -> None:
    """Put calls of the base's layers in the place of operators that are all that these do; what is not used goes."""
    layers = dict(base.named_modules(remove_duplicate=False))
    for path, nodes in _by_module(part.graph).items():
        layer = layers.get(path)  # of an exported program, only those with weights are left, and they are no layers
        if layer is not None and all(_is_call_of(node, layer, path) for node in nodes):
            part.add_submodule(path, layer)
            for node in nodes:
                _call(part.graph, node, path)
    tidied(part)


def tidied(part: fx.GraphModule) -> fx.GraphModule:
    """The part, rid of all that it does not use."""
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part


def _by_module(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The operators that ran in each module, without those of the top level."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        path = module_of(node)
        if node.op == "call_function" and path and not _is_arithmetic(node):
            found.setdefault(path, []).append(node)
    return found


def _is_arithmetic(node: fx.Node) -> bool:
    """Whether a node computes sizes, such as the number of a convolution's groups."""
    return not isinstance(node.target, torch._ops.OpOverload) or operator_of(node).kind == "size"


def _is_call_of(node: fx.Node, layer: nn.Module, path: str) -> bool:
    """Whether the operator is all that calling the layer does, on the layer's own weights.

    Elsewhere the operators of the graph stand as they are, on the base's parameters.
    """
    if node.op != "call_function" or type(layer) not in operator_of(node).modules:
        return False
    image = node.args[0]
    if not isinstance(image, fx.Node) or is_weight(image):
        return False
    if getattr(layer, "inplace", False) and image.op == "placeholder":
        return False  # it would write into a tensor that is not the tail's
    used = {str(each.target) for each in node.all_input_nodes if is_weight(each) and each.target != "training"}
    return used == {f"{path}.{name}" for name, _ in (*layer.named_parameters(), *layer.named_buffers())
                    if name != "num_batches_tracked"}  # fmt: skip


def _call(graph: fx.Graph, node: fx.Node, path: str) -> None:
    """Put a call of a layer in the place of an operator."""
    with graph.inserting_before(node):
        call = graph.call_module(path, (node.args[0],))
    call.meta = copy.copy(node.meta)
    node.replace_all_uses_with(call)
    graph.erase_node(node)


def _give_own_norms_(part: fx.GraphModule, own_affine: bool) -> None:
    """Put a layer with its own statistics in the place of every batch norm, one for all calls of the same."""
    calls: dict[str, list[fx.Node]] = {}
    for node in part.graph.nodes:
        statistics = node.args[3:5] if operator_of(node).kind == "batch norm" else ()
        if statistics and all(isinstance(each, fx.Node) and is_weight(each) for each in statistics):
            calls.setdefault(str(node.args[3].target).rpartition(".")[0] or "norm", []).append(node)
    for path, nodes in calls.items():
        layer = _own_norm(part, nodes[0], own_affine)
        here = dict(part.named_modules()).get(path)
        if here is not None and any(True for _ in here.children()):
            path = f"{path}.own"  # of a layer that does more than normalise
        part.add_submodule(path, layer)
        for node in nodes:
            _call(part.graph, node, path)


def _own_norm(part: fx.GraphModule, node: fx.Node, own_affine: bool) -> nn.Module:
    scale, shift, mean, variance = (_tensor(part, each) for each in node.args[1:5])
    assert mean is not None and variance is not None
    kind = _NORMS[len(node.meta["tensor_meta"].shape)]
    momentum, eps = node.args[6:8]
    assert isinstance(momentum, float) and isinstance(eps, float)
    layer = kind(len(mean), eps, momentum, affine=scale is not None)
    layer.to(mean.device)
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    for name, held in (("weight", scale), ("bias", shift)):
        if isinstance(held, nn.Parameter):
            setattr(layer, name, nn.Parameter(held.detach().clone(), held.requires_grad) if own_affine else held)
    return layer.train(part.training)


_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _tensor(part: fx.GraphModule, node: object) -> torch.Tensor | None:
    if not isinstance(node, fx.Node):
        return None
    held: object = part
    for name in str(node.target).split("."):
        held = getattr(held, name)
    return held if isinstance(held, torch.Tensor) else None


def use_weights_of_(part: fx.GraphModule, base: nn.Module) -> None:
    """Make every parameter and buffer of the part the base's own object, as far as the base has one of that name."""
    tensors = dict(base.named_parameters(remove_duplicate=False)) | dict(base.named_buffers(remove_duplicate=False))
    held_here = (*part.named_parameters(remove_duplicate=False), *part.named_buffers(remove_duplicate=False))
    for name, _ in held_here:
        if name in tensors:
            owner, _, leaf = name.rpartition(".")
            held = part.get_submodule(owner)
            (held._parameters if leaf in held._parameters else held._buffers)[leaf] = tensors[name]  # type: ignore[assignment]
