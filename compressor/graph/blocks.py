"""Modules of a network that less can stand for: residual blocks, and convolutions in a row.

A block is a module that is called once, with one tensor, and gives one. Its branch, which holds its layers, can be
left out where a sum joins it to a shortcut of the same shape; where it makes maps of maps, one convolution can take
its place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from compressor.graph.cuts import call_layers_, part_of, tidied, use_weights_of_
from compressor.graph.program import is_weight, module_of, operator_of, program
from compressor.graph.shortcuts import Meeting, is_layer, is_sum, meeting
from compressor.graph.trace import trace

KERNELS = (1, 3)  # heights and widths of a convolution in a branch's place
CONVOLUTION, GATE = "fitted", "gate"  # within its block, what stands in the branch's place, or behind it
_ROW = frozenset({"convolution", "batch norm", "activation", "dropout"})  # of a row of convolutions


class Values(NamedTuple):
    """Of a convolution: its weight, what is added to its outputs, and mean and variance of these before."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor

    def put_(self, made: nn.Sequential) -> None:
        """Into a convolution that `Block.convolution` made; behind a batch norm it computes the same."""
        convolution, *behind = made
        assert isinstance(convolution, nn.Conv2d)
        convolution.weight.copy_(self.weight)
        if convolution.bias is not None:
            convolution.bias.copy_(self.bias)
            return
        (norm,) = behind
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.variance)
        norm.weight.copy_((self.variance + norm.eps).sqrt())
        norm.bias.copy_(self.mean + self.bias)


@dataclass(frozen=True, eq=False)
class Block:
    """A module as a graph of its own, on the network's parameters under the network's names."""

    name: str
    part: fx.GraphModule
    branch: fx.Node  # of its graph: what gives the result of the branch
    shortcut: fx.Node | None  # what is added to it; None: nothing, and the branch cannot be left out

    @property
    def given(self) -> tuple[int, ...]:
        """The shape of its input, without the batch."""
        return _shape(next(iter(self.part.graph.nodes)))

    @property
    def made(self) -> tuple[int, ...]:
        """The shape of what the branch makes, without the batch."""
        return _shape(self.branch)

    @property
    def total(self) -> fx.Node:
        """Where the branch has joined the shortcut, or what it gives where there is none."""
        return self.branch if self.shortcut is None else next(iter(self.branch.users))

    def convolution(self, kernel: int) -> nn.Sequential | None:
        """A convolution of the input, all zeros, with the branch's shapes; None where none of this size has them.

        A batch norm follows it where the branch ends in one, so that it trains as the branch did.
        """
        if len(self.given) != 3 or len(self.made) != 3:
            return None
        (inputs, *sizes), (outputs, *wanted) = self.given, self.made
        rows, columns = (-(-old // new) for old, new in zip(sizes, wanted, strict=True))
        padding, like = kernel // 2, next(self.part.parameters())
        made = [(old + 2 * padding - kernel) // by + 1 for old, by in zip(sizes, (rows, columns), strict=True)]
        if made != wanted:
            return None
        normed = operator_of(self.branch).kind == "batch norm"
        shape = (inputs, outputs, kernel, (rows, columns), padding)
        convolution = skip_init(nn.Conv2d, *shape, bias=not normed)  # which would draw random numbers
        for parameter in convolution.parameters():
            nn.init.zeros_(parameter)
        found = nn.Sequential(convolution, *([nn.BatchNorm2d(outputs)] if normed else []))
        return found.to(like.device, like.dtype)

    def ending(self, node: fx.Node) -> fx.GraphModule:
        """The part up to one of its nodes."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.part.graph, mapping)
        graph.output(mapping[node])
        return tidied(fx.GraphModule(self.part, graph))

    def replaced(self, convolution: nn.Module | None, gate: nn.Module | None = None) -> fx.GraphModule:
        """The part with a convolution of its input in the place of the branch, or without the branch.

        With a `gate`, a module that is given what the branch makes, the branch stays behind it, beside the convolution.
        """
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.part.graph, mapping))
        part = fx.GraphModule(self.part, graph)
        branch, start = mapping[self.branch], next(iter(graph.nodes))
        made: list[fx.Node] = []
        for name, module, given in ((GATE, gate, branch), (CONVOLUTION, convolution, start)):
            if module is not None:
                part.add_submodule(f"{self.name}.{name}", module)
                with graph.inserting_after(made[-1] if made else branch):
                    made.append(graph.call_module(f"{self.name}.{name}", (given,)))
        if not made:
            assert self.shortcut is not None
            mapping[self.total].replace_all_uses_with(mapping[self.shortcut])
            return tidied(part)
        whole = made[0]
        if len(made) > 1:
            with graph.inserting_after(made[-1]):
                whole = graph.call_function(torch.ops.aten.add.Tensor, tuple(made))
        branch.replace_all_uses_with(whole, delete_user_cb=lambda user: user not in made)
        return tidied(part)

    def module(self, model: nn.Module, convolution: nn.Module | None, gate: nn.Module | None = None) -> nn.Module:
        """What takes the module's place in the model: `replaced`, of the model's own layers under the names in it."""
        part = self.replaced(convolution, gate)
        use_weights_of_(part, model)
        call_layers_(part, model)
        for node in part.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                node.target = str(node.target).removeprefix(f"{self.name}.")
        if [node.op for node in part.graph.nodes] == ["placeholder", "output"]:
            return nn.Identity()
        held = dict(part.named_modules()).get(self.name, nn.Module())
        return fx.GraphModule(held, part.graph, type(model.get_submodule(self.name)).__name__)


@dataclass(frozen=True)
class Blocks:
    """Blocks by name, in the order in which they run, and what was looked at and is none, with the reason."""

    found: dict[str, Block]
    refused: dict[str, str]


def find_blocks(model: nn.Module, example: Tensor) -> Blocks:
    """The blocks of a network of one tensor of images, on its own parameters.

    Raises:
        ModelError: the network does not run, or cannot be written as one graph.
    """
    whole = program(model, example)
    inside = _inside(whole.graph)
    calls: dict[str, int] = {}
    for call in trace(model, example).calls:
        plain = len(call.inputs) == len(call.outputs) == 1
        calls[call.module] = calls.get(call.module, 0) + (1 if plain else 2)
    found: dict[str, Block] = {}
    refused: dict[str, str] = {}
    for name in _candidates(whole.graph, inside):
        block = _block(whole, name, inside[name]) if name else "a sum of paths stands in code outside any module"
        if isinstance(block, Block) and calls.get(name) != 1:
            block = "it is called several times, or with or for several tensors"
        if isinstance(block, Block):
            found[name] = block
        else:
            refused[name or "(model)"] = block
    return Blocks(found, refused)


def _inside(graph: fx.Graph) -> dict[str, set[fx.Node]]:
    """The operators on tensors that ran in each module, those of the modules in it included."""
    found: dict[str, set[fx.Node]] = {"": set()}
    for node in graph.nodes:
        stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
        if node.op == "call_function" and _is_tensor(node):
            for path, _ in stack.values():
                found.setdefault(str(path), set()).add(node)
    return found


def _candidates(graph: fx.Graph, inside: Mapping[str, set[fx.Node]]) -> Iterator[str]:
    """Modules in whose own code paths meet, and the smallest others with several layers."""
    met = {module_of(node) for node in graph.nodes if is_sum(node)}
    several = {name for name, nodes in inside.items() if name and sum(map(is_layer, nodes)) > 1}
    smallest = {name for name in several - met if not any(_within(each, name) for each in several | met)}
    smallest = {name for name in smallest if not any(_within(name, each) for each in met if each)}
    yield from sorted(met | smallest, key=lambda name: min(inside[name], default=next(iter(graph.nodes))))


def _within(name: str, outer: str) -> bool:
    return name.startswith(f"{outer}.")


def _block(whole: fx.GraphModule, name: str, inside: set[fx.Node]) -> Block | str:
    """The block that a module is, or why it is none."""
    graph = _part(whole.graph, inside)
    if isinstance(graph, str):
        return graph
    part = fx.GraphModule(whole, graph)
    held = {str(node.target) for node in graph.nodes if is_weight(node)} - {"training"}
    if not all(_within(each, name) for each in held):
        return "it reads parameters of other modules"
    met = meeting(graph)
    if met is not None and _may_stand_alone(met):
        return Block(name, part, met.branch, met.shortcut)
    if met is not None or any(is_sum(node) for node in graph.nodes):
        return "no path in it can stand for the sum of both"
    made = (node for node in reversed(graph.nodes) if operator_of(node).kind in ("convolution", "batch norm"))
    branch = next(made, None)
    odd = {operator_of(node).kind for node in graph.nodes if node.op == "call_function" and _is_tensor(node)} - _ROW
    if branch is None or odd or len(_shape(branch)) != 3:
        return "it does more than convolve, normalise and activate maps"
    return Block(name, part, branch, None)


def _may_stand_alone(met: Meeting) -> bool:
    return _shape(met.shortcut) == _shape(met.total) == _shape(met.branch) and list(met.branch.users) == [met.total]


def _part(whole: fx.Graph, inside: set[fx.Node]) -> fx.Graph | str:
    """The operators of a module as a graph of one input and one output; a text where it has not one of each."""
    given = {each for node in inside for each in node.all_input_nodes if _flows(each) and each not in inside}
    made = [node for node in inside if any(user not in inside and not _is_size(user) for user in node.users)]
    if len(given) != 1 or len(made) != 1:
        return f"it takes {len(given)} tensors and gives {len(made)}: blocks have one of each"
    (start,) = given
    graph = part_of(start, (node for node in whole.nodes if node in inside), made[0])
    next(iter(graph.nodes)).meta = dict(start.meta)
    return graph


def _flows(node: fx.Node) -> bool:
    return _is_tensor(node) and not is_weight(node)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_size(node: fx.Node) -> bool:
    return node.op == "call_function" and not _is_tensor(node)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape[1:])
