"""Operators run on shapes alone (the meta device), and a run written down by their names and shapes."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compressor.files.limits import within_memory
from compressor.graph.copies import CONSTANTS
from compressor.graph.held import leaves
from compressor.graph.meta_shapes import NotQuick, in_place, same_type
from compressor.graph.operators import lookup
from compressor.graph.records import Found, Ran, plain_name
from compressor.graph.skeleton import Replica
from compressor.graph.values import Values


def run_on_shapes(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values) -> Any:
    """What one operator gives; tensors that the user's code made elsewhere join the others on the meta device."""
    rule = _quick_rule(func) if not kwargs else None
    try:
        output = rule(*args) if rule is not None else _shaped(func, args, kwargs, values)
    except NotQuick:
        output = _shaped(func, args, kwargs, values)
    values.follow(func, args, kwargs, output)
    return output


def _shaped(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values) -> Any:
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        with within_memory():
            known = values.work_out(func, args, kwargs)
        if known is not None:  # a shape that depends on data, or the data themselves
            return known if _goes_to_cpu(func, kwargs) else values.on_meta(known)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(leaf.is_meta for leaf in given) or not any(leaf.is_meta for leaf in given):
            raise
        args, kwargs = tree_map(_on_meta, (args, kwargs))
        return func(*args, **kwargs)


def _goes_to_cpu(func: torch._ops.OpOverload, kwargs: dict[str, Any]) -> bool:
    return func is torch.ops.aten._to_copy.default and kwargs.get("device", _CPU) == _CPU


_CPU = torch.device("cpu")


def _on_meta(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf


@cache
def _quick_rule(func: torch._ops.OpOverload) -> Callable[..., Any] | None:
    rule = lookup(func).shape if func._overloadname in ("default", "Tensor", "Scalar", "dim") else None
    return in_place if rule is same_type and func._schema.is_mutable else rule


Answer = Callable[[int, Any], Any]  # how many values Python has read, and the next one -> what it is told


class Watching(TorchDispatchMode):
    """A mode that dynamo may look into: keeping it out costs more than most operators do on shapes alone."""

    def __init__(self, replica: Replica, answer: Answer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values, self._on_meta = replica.values, replica.device.type == "meta"
        self._reserve = torch.empty(0, dtype=torch.uint8, device=replica.device)
        self._answer = answer
        self.reads: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def _given(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._on_meta:
            output = run_on_shapes(func, args, kwargs, self._values)
        else:
            output = func(*args, **kwargs)
        if func is _READS:
            output = self._answer(len(self.reads), output)
            self.reads.append(output)
        return output


_READS = torch.ops.aten._local_scalar_dense.default
_EMPTY = torch.ops.aten.empty.memory_format
_INTEGERS = frozenset({int})


def is_reserve(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether `empty` is called by batch norm, which keeps nothing in what it makes."""
    return func is _EMPTY and args == ([0],) and kwargs is not None and kwargs.get("dtype") is torch.uint8


class Outline(Watching):
    """Writes down name and shapes of every operator; gives what was found before where `found` has it, by the names of
    all operators but those of layout: which boxes remain, how often a loop runs.
    """

    def __init__(self, replica: Replica, answer: Answer, found: Sequence[tuple[str, Found]]) -> None:
        super().__init__(replica, answer)
        self.ops: list[Ran] = []
        self._found = [*found]
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_reserve(func, args, kwargs):
            return self._reserve
        operator, name = lookup(func), plain_name(func)
        plain = tuple([value if type(value) in CONSTANTS else _plain(value) for value in args])
        try:
            output = self._given(func, args, kwargs or {})
        except BaseException:
            self.ops.append(Ran(operator, name, plain, ()))
            raise
        if self._found and not operator.incidental:
            self._next += 1
            told, found = self._found[self._next - 1] if self._next <= len(self._found) else ("", ())
            output = _replaced(output, found) if told == name else output
        shapes = (output.shape,) if type(output) is Tensor else tuple([leaf.shape for leaf in leaves(output)])
        self.ops.append(Ran(operator, name, plain, shapes))
        return output


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value) if _INTEGERS.issuperset(map(type, value)) else None
    return None if isinstance(value, Tensor) else value


def _replaced(output: Any, found: Found) -> Any:
    if isinstance(output, Tensor):
        return output if not found or found[0] is None else found[0].clone()
    if isinstance(output, tuple) and len(found) == len(output):
        return tuple(one if known is None else known.clone() for one, known in zip(output, found, strict=True))
    return output
