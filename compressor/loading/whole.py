"""Check a module that came whole out of a pickle: it has to be what its layers' constructors could have made."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from compressor.errors import FileError

_MOST_LAYERS = 100_000  # counting one that stands in two places twice, as a walk through the network would
_DEEPEST = 100


def checked(module: nn.Module, path: Path) -> nn.Module:
    """The module, or the one inside DataParallel.

    Raises FileError where it lacks what every module has, contains itself, brings hooks or replaces methods of its
    class.
    """
    try:
        module = module.module if isinstance(module, nn.DataParallel) else module
        _walk(module)
        repr(module)
        valueless = any(tensor.is_meta for tensor in module.state_dict().values())
    except Exception as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise FileError(f"{path} holds a damaged module ({type(error).__name__}: {first[:200]})") from error
    if valueless:
        raise FileError(f"{path} holds a network without values (its tensors are on the meta device)")
    return module


def _walk(module: nn.Module) -> None:
    waiting, seen = [(module, 0)], 0
    while waiting:
        each, depth = waiting.pop()
        seen += 1
        if seen > _MOST_LAYERS or depth > _DEEPEST:
            raise ValueError("its layers contain one another without end")
        if not isinstance(each, nn.Module):
            raise TypeError(f"a {type(each).__name__} stands where a layer should")
        _check_layer(each)
        waiting += [(child, depth + 1) for child in each._modules.values() if child is not None]


def _check_layer(layer: nn.Module) -> None:
    held = vars(layer)
    kind = type(layer).__name__
    for place, allowed in (("_parameters", nn.Parameter), ("_buffers", Tensor), ("_modules", nn.Module)):
        if not isinstance(held[place], dict) or not all(isinstance(name, str) for name in held[place]):
            raise TypeError(f"the {place} of a {kind} are no dict of names")
        if not all(value is None or isinstance(value, allowed) for value in held[place].values()):
            raise TypeError(f"the {place} of a {kind} hold something else")
    for name, value in held.items():
        if name.endswith("_hooks") and value:
            raise ValueError(f"a {kind} comes with {name}")
        if callable(getattr(type(layer), name, None)):
            raise ValueError(f"a {kind} replaces its method {name}")
