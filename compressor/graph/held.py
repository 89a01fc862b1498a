"""Tensors inside anything: which ones a value carries, and a copy of the value with other tensors in their place.

And which ones a model keeps where torch does not look for them.
"""

import copy
import gc
import io
import types
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from compressor.graph.copies import CONSTANTS
from compressor.graph.tensors import has_data

_CLOSED = (
    *(type, types.ModuleType, types.CodeType, nn.Module, Optimizer, io.IOBase),
    *(str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Generator),
)
_PLAIN = frozenset({Tensor, nn.Parameter})
_MOST_OBJECTS = 100_000  # beyond them nobody meant to hand over a tensor
_MOST_UNSEEN = 10_000  # objects of one attribute, where torch does not look for tensors
_MOST_ITEMS = 10_000  # taken from an iterator that may have no end


def tensors_in(value: Any, *, exhaust: bool = False, besides: Collection[nn.Module] | None = None) -> list[Tensor]:
    """Every tensor that a value carries, each once, in order.

    Containers, attributes (slots, closures and a generator's variables included) and what a future or a weak
    reference gives are opened; classes are not, nor are modules, unless `besides` says which ones alone are not. With
    `exhaust` iterators are run to their end, as the caller of a network would.
    """
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter) and not vars(value):
        return [value]
    return [one for one in reached(value, exhaust=exhaust, besides=besides) if isinstance(one, Tensor)]


def leaves(values: Any) -> Sequence[Tensor]:
    """The same of what an operator gives: most are one, or a plain tuple of them."""
    if isinstance(values, Tensor):
        return (values,)
    if type(values) is tuple and (
        _PLAIN.issuperset(map(type, values)) or all(isinstance(value, Tensor) for value in values)
    ):
        return values
    return tensors_in(values)


def reached(
    value: Any, *, exhaust: bool = False, most: int = _MOST_OBJECTS, besides: Collection[nn.Module] | None = None
) -> Iterator[Any]:
    """Every object that a value carries, each once, in order; modules are among them, opened as in `tensors_in`."""
    seen: dict[int, Any] = {}  # what is seen stays alive, so that no other object takes its number
    waiting = [value]
    while waiting and len(seen) < most:
        one = waiting.pop()
        if type(one) in CONSTANTS or id(one) in seen:
            continue
        seen[id(one)] = one
        yield one
        foreign = besides is not None and isinstance(one, nn.Module) and one not in besides
        if isinstance(one, _CLOSED) and not isinstance(one, Tensor) and not foreign:
            continue
        parts = _run_out(one) if exhaust and isinstance(one, Iterator | Coroutine) else _parts(one)
        waiting.extend(reversed(list(parts)))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a value in which every tensor became another; what cannot be copied stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(with_tensors(item, change) for item in value)
    if type(value) is dict:
        return {key: with_tensors(item, change) for key, item in value.items()}
    memo = {id(tensor): change(tensor) for tensor in tensors_in(value)}
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # copying runs whatever code the class brings
        return value


def _run_out(iterator: Any) -> Iterable[Any]:
    if isinstance(iterator, Coroutine):
        try:
            while True:
                iterator.send(None)
        except StopIteration as stop:
            return (stop.value,)
    return [item for item, _ in zip(iterator, range(_MOST_ITEMS), strict=False)]


def _parts(value: Any) -> Iterable[Any]:
    kind = type(value)
    if kind is dict:
        return _without_constants(value.values(), value)
    if kind is list or kind is tuple:
        return list(value)
    if isinstance(value, Tensor):
        inner: list[str] = value.__tensor_flatten__()[0] if is_traceable_wrapper_subclass(value) else []
        return [*(getattr(value, name) for name in inner), *vars(value).values()]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
    if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
        return (value.__self__,)
    if isinstance(value, np.ndarray):
        return [value.base, *(value.ravel().tolist() if value.dtype == object else ())]
    if isinstance(value, weakref.ref):
        return (value(),)
    if isinstance(value, torch.futures.Future):
        return (value.value(),) if value.done() else ()
    if isinstance(value, list | tuple):
        entries: Any = list if isinstance(value, list) else tuple
        return [*entries.__iter__(value), *getattr(value, "__dict__", {}).values()]
    if isinstance(value, dict):  # whatever the user's class makes of its keys
        return [*dict.keys(value), *dict.values(value), *getattr(value, "__dict__", {}).values()]
    return gc.get_referents(value)


def _without_constants(values: Iterable[Any], keys: Iterable[Any]) -> Iterable[Any]:
    return [one for both in (keys, values) for one in both if type(one) not in CONSTANTS]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def in_one_memory(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """A note that names parameters which torch takes for several and which are one memory (`Parameter(other.data)`)."""
    names: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in tensors.items():
        if has_data(tensor) and (memory := tensor.data_ptr()):  # none of what has no elements
            names.setdefault((memory, tuple(tensor.shape)), []).append(name)
    for each in names.values():
        if len(each) > 1:
            yield f"{', '.join(each)} are one memory; an edit gives each its own: use one parameter to tie them"


def unregistered(
    held: Iterable[tuple[str, Any]], tensors: Iterable[Tensor], shapes: Iterable[tuple[int, ...]]
) -> Iterator[str]:
    """A note that names what is `held` by modules' attributes and has tensors of these shapes which are none of the
    model's own: an averaged copy set by `object.__setattr__`, shadows in a list. No edit reaches them.

    Tensors that stand alone are made anew by hooks (masks, old weight norm), and a graph module's graph names the
    network that it was cut out of.
    """
    wanted, own = set(shapes), {id(tensor) for tensor in tensors}
    runs = ((name, value) for name, value in held if not isinstance(value, Tensor | fx.Graph))
    names = [name for name, value in runs if _holds(value, wanted, own)]
    if names:
        yield f"not edited, though of the shapes of edited layers: {', '.join(names)}; make them anew after an edit"


def _holds(value: Any, wanted: set[tuple[int, ...]], own: set[int]) -> bool:
    for one in reached(value, most=_MOST_UNSEEN):
        if isinstance(one, nn.Module):
            tensors: Iterable[Tensor] = one.parameters()
        else:
            tensors = (one,) if isinstance(one, Tensor) else ()
        if any(id(tensor) not in own and tensor.ndim > 1 and _is_of(tensor, wanted) for tensor in tensors):
            return True
    return False


def _is_of(tensor: Tensor, wanted: set[tuple[int, ...]]) -> bool:
    """Whether a tensor with values has one of the shapes; what an exporter left behind in its graph has none."""
    return has_data(tensor) and tuple(tensor.shape) in wanted
