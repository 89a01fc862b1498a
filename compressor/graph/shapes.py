"""Run one operator on shapes alone (the meta device)."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from compressor.files.limits import within_memory
from compressor.graph.meta_shapes import NotQuick, in_place, same_type
from compressor.graph.operators import lookup
from compressor.graph.values import Values


def run_on_shapes(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values) -> Any:
    """What the operator gives; tensors that the user's code made elsewhere join the others on the meta device."""
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
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(leaf.is_meta for leaf in leaves) or not any(leaf.is_meta for leaf in leaves):
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
