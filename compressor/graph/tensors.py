"""The tensors of a model by their names in the state dict, which may hold other values besides."""

import itertools
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


def named_modules(model: nn.Module, *, every: bool = False) -> list[tuple[str, nn.Module]]:
    """As torch gives them, under `every` name or the first of each, without a generator for each layer: captures ask
    again and again.
    """
    found: list[tuple[str, nn.Module]] = [("", model)]
    _visit("", model, found, None if every else {id(model)})
    return found


def _visit(above: str, module: nn.Module, found: list[tuple[str, nn.Module]], met: set[int] | None) -> None:
    """What is inside a module; `above` is its path with a dot behind it."""
    for name, inner in module._modules.items():
        if type(inner) in _PROXIES:
            inner = inner.named_modules.__self__  # type: ignore[union-attr]  # what it stands for
        if inner is None or (met is not None and id(inner) in met):
            continue
        if met is not None:
            met.add(id(inner))
        found.append((f"{above}{name}", inner))
        if inner._modules:  # most are layers
            _visit(f"{above}{name}.", inner, found, met)


_PROXIES = frozenset(weakref.ProxyTypes)


def named_tensors(model: nn.Module, modules: Iterable[tuple[str, nn.Module]] | None = None) -> dict[str, Tensor]:
    """Parameters, then buffers (those that are not saved too), each under its first name, as torch gives them.

    `modules` are the model's, where they are at hand.
    """
    found: dict[str, Tensor] = {}
    modules = named_modules(model) if modules is None else modules
    for kind in ("_parameters", "_buffers"):
        met: set[int] = set()
        for path, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in met:
                    met.add(id(tensor))
                    found[f"{path}.{name}" if path else name] = tensor
    return found


def saved_tensors(model: nn.Module, *, keep_vars: bool = False) -> dict[str, Tensor]:
    """The tensors in the state dict; what layers keep there besides (`get_extra_state`) is left out.

    With `keep_vars` they are the parameters and buffers themselves.
    """
    state = model.state_dict(keep_vars=keep_vars)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def transient_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are not in the state dict."""
    return {
        f"{path}.{name}".lstrip("."): buffer
        for path, module in named_modules(model)
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    }


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor is more than its shape."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model with neither."""
    held = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))
