"""What a model keeps where torch does not look for it: an averaged copy set by `object.__setattr__`, shadows in a list.

An edit does not reach it, so what has the shapes of edited layers is named.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from compressor.graph.held import reached
from compressor.graph.tensors import has_data

_MOST = 10_000  # objects of one attribute


def in_one_memory(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """A note that names parameters which torch takes for several and which are one memory (`Parameter(other.data)`)."""
    names: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in tensors.items():
        if has_data(tensor) and tensor.numel():
            names.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    for each in names.values():
        if len(each) > 1:
            yield f"{', '.join(each)} are one memory; an edit gives each its own: use one parameter to tie them"


def unregistered(
    held: Iterable[tuple[str, Any]], tensors: Iterable[Tensor], shapes: Iterable[tuple[int, ...]]
) -> Iterator[str]:
    """A note that names what is `held` by modules' attributes and has tensors of these shapes which are none of the
    model's own; tensors that stand alone are made anew by hooks (masks, old weight norm), and a graph module's graph
    names the network that it was cut out of.
    """
    wanted, own = set(shapes), {id(tensor) for tensor in tensors}
    runs = ((name, value) for name, value in held if not isinstance(value, Tensor | fx.Graph))
    names = [name for name, value in runs if _holds(value, wanted, own)]
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
