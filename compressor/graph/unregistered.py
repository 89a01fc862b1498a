"""What a model keeps where torch does not look for it: an averaged copy set by `object.__setattr__`, shadows in a list.

An edit does not reach it, so what has the shapes of edited layers is named.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from compressor.graph.copies import CONSTANTS, is_constant
from compressor.graph.held import reached
from compressor.graph.tensors import has_data, named_modules, named_tensors

_REGISTERED = frozenset({"_parameters", "_buffers", "_modules", "_compiled_call_impl"})
_HOLDERS = frozenset({dict, OrderedDict, list, set, tuple})
_MOST = 10_000  # objects of one attribute


def in_one_memory(model: nn.Module) -> Iterator[str]:
    """A note that names parameters which torch takes for several and which are one memory (`Parameter(other.data)`)."""
    names: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in named_tensors(model).items():
        if has_data(tensor) and tensor.numel():
            names.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    for each in names.values():
        if len(each) > 1:
            yield f"{', '.join(each)} are one memory; an edit gives each its own: use one parameter to tie them"


def unregistered(model: nn.Module, shapes: Iterable[tuple[int, ...]]) -> Iterator[str]:
    """A note that names the attributes which hold tensors of these shapes, of modules or in containers, that are none
    of the model's own; tensors that stand alone are made anew by hooks (masks, old weight norm).
    """
    wanted, names = set(shapes), []
    modules = named_modules(model)
    own = {id(tensor) for tensor in named_tensors(model, modules).values()}
    for path, module in modules:
        for name, value in vars(module).items():
            kind = type(value)
            if kind in CONSTANTS or (kind in _HOLDERS and not value) or name in _REGISTERED:  # as most
                continue
            if not (is_constant(value) or isinstance(value, Tensor)) and _holds(value, wanted, own):
                names.append(f"{path}.{name}".removeprefix("."))
    if names:
        yield f"not edited, though of the shapes of edited layers: {', '.join(names)}; make them anew after an edit"


def _holds(value: Any, wanted: set[tuple[int, ...]], own: set[int]) -> bool:
    for one in reached(value, most=_MOST):
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
