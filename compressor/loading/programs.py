"""An exported program (.pt2) as plain data, and the network that is built from it.

torch's own reader unpickles what the archive asks for and evaluates its expressions. Here a graph is operators of ATen
by name, arithmetic on sizes, and nothing else. The plain data are what a checkpoint keeps in place of an architecture's
name, so a network that came as a program needs no code of its author's.
"""

from __future__ import annotations

import base64
import json
import keyword
import math
import operator
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import FileError
from compressor.graph.program import trainable_graph

PROGRAM = "program"  # in place of an architecture's name

_MOST_NODES = 100_000
_MOST_BYTES = 1 << 26  # of JSON
_TEXT = 50_000  # characters of one text
_DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, zlib.error,
)  # fmt: skip

# What a graph computes with sizes. Operators on tensors are all of ATen's but those that open files.
_ON_SIZES: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in "add sub mul floordiv truediv mod neg pow eq ne lt le gt ge getitem and_ or_ not_".split()  # noqa: SIM905
    },
    **{f"torch.{name}": getattr(torch, name) for name in dir(torch) if name.startswith("sym_")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
_ATEN = "torch.ops.aten."
_OPEN_FILES = frozenset({"from_file"})
_NAMED: dict[str, Any] = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format)
}


def packed(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe as texts that a checkpoint can keep."""
    text = base64.b85encode(zlib.compress(json.dumps(recipe, separators=(",", ":")).encode(), 9)).decode()
    return [text[place : place + _TEXT] for place in range(0, len(text), _TEXT)]


def build(graph: list[str]) -> fx.GraphModule:
    """The network of a packed recipe; its weights are zeros.

    Raises FileError for a recipe that is damaged or asks for more than ATen's operators.
    """
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(base64.b85decode("".join(graph)), _MOST_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError("it is too large")
        recipe = json.loads(text)
        root = nn.Module()
        for name, (kind, dtype, sizes, first) in recipe["weights"].items():
            _register(root, name, _tensor(root, kind, dtype, sizes, first), kind)
        return trainable_graph(root, _Graph(recipe["weights"]).of(recipe))
    except FileError:
        raise
    except _DAMAGE as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise FileError(f"the exported program is damaged ({type(error).__name__}: {first[:200]})") from error


def operator_named(target: str) -> Callable[..., Any]:
    """The function that a node of a graph calls. Raises FileError for one that a network's graph does not need."""
    if target in _ON_SIZES:
        return _ON_SIZES[target]
    packet, _, overload = target.removeprefix(_ATEN).partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if target.startswith(_ATEN) else None
    if not isinstance(found, torch._ops.OpOverload) or packet in _OPEN_FILES:
        raise FileError(f"the exported program calls {target[:80]!r}, which is none of ATen's operators on tensors")
    return found


def _checked(name: str) -> str:
    """A name that torch.fx writes into the code it makes; raises ValueError for one that is more than a name."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name[:40]!r} is no name")
    return name


def _register(root: nn.Module, name: str, tensor: Tensor, kind: str) -> None:
    if not re.fullmatch(r"\w+(\.\w+){0,40}", name):  # it, too, goes into the code
        raise ValueError(f"{name[:40]!r} is no name")
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]  # type: ignore[assignment]
    if kind == "parameter":
        owner.register_parameter(leaf, tensor)  # type: ignore[arg-type]
    else:
        owner.register_buffer(leaf, tensor)


def _tensor(root: nn.Module, kind: str, dtype: str, sizes: list[int], first: str | None) -> Tensor:
    """A tensor of zeros; or, of a tensor that has two names, the one under the first."""
    if first is not None:
        held: Any = root
        for part in first.split("."):
            held = getattr(held, part)
        assert isinstance(held, Tensor)
        return held
    zeros = torch.zeros(sizes, dtype=_NAMED[dtype])
    return nn.Parameter(zeros, requires_grad=zeros.is_floating_point()) if kind == "parameter" else zeros


class _Graph:
    """A graph while its nodes are added."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self.graph = fx.Graph()
        self._nodes: dict[str, fx.Node] = {}
        self._weights = weights

    def of(self, recipe: Mapping[str, Any]) -> fx.Graph:
        """All of a recipe's nodes."""
        if len(recipe["nodes"]) > _MOST_NODES:
            raise ValueError(f"it has {len(recipe['nodes']):,} operators")
        for name, dtype, sizes in recipe["inputs"]:
            self._nodes[name] = self.graph.placeholder(_checked(name))
            self._nodes[name].meta["val"] = _example(dtype, sizes)
        for name, weight in recipe["uses"].items():
            _, dtype, sizes, _ = self._weights[weight]
            node = self.graph.create_node("get_attr", weight)
            node.meta["val"] = _example(dtype, sizes)
            self._nodes[name] = node
        for each in recipe["nodes"]:
            self._add(*each)
        results = [self._nodes[name] for name in recipe["outputs"]]
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        return self.graph

    def _add(
        self, target: str, arguments: list[Any], keywords: dict[str, Any], module: str, outputs: list[Any]
    ) -> None:
        """A node, and one more for each of several things that it gives."""
        node = self.graph.call_function(
            operator_named(target),
            tuple(self._value(each) for each in arguments),
            {_checked(key): self._value(each) for key, each in keywords.items()},
        )
        node.meta["nn_module_stack"] = {module: (module, "")} if module else {}
        if len(outputs) == 1 and outputs[0][0] == "one":
            self._name(node, *outputs[0][1:])
            return
        for place, (_, *described) in enumerate(outputs):
            if described:
                self._name(self.graph.call_function(operator.getitem, (node, place)), *described)

    def _name(self, node: fx.Node, name: str, dtype: str | None, sizes: Any) -> None:
        node.meta["val"] = sizes if dtype is None else _example(dtype, sizes)
        self._nodes[name] = node

    def _value(self, held: Any) -> Any:
        if isinstance(held, list | tuple):
            return [self._value(each) for each in held]
        if isinstance(held, dict):
            ((kind, value),) = held.items()
            return self._nodes[value] if kind == "ref" else torch.device(value) if kind == "device" else _NAMED[value]
        return held


def _example(dtype: str, sizes: list[int]) -> Tensor:
    return torch.empty(sizes, dtype=_NAMED[dtype], device="meta")
