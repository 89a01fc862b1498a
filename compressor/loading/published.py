"""What a file may name in a network: published layers, activations, types of numbers, timm's enumerations.

The network of an ONNX file (loading.onnx_network) counts as published: it holds plain values and runs listed functions.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from compressor.graph.operators import of_kind
from compressor.loading import onnx_network
from compressor.vision import door as vision  # noqa: F401  its import puts torchvision's modules where the classes are looked up

# Where the classes are defined; not what is merely imported there.
_PACKAGES = (
    "torch.nn.modules.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.",
    f"{onnx_network.__name__}.",
)  # fmt: skip

# Functions that layers hold as attributes, besides timm's activations.
_ACTIVATIONS = (*of_kind("activation", "softmax"), "logsigmoid", "softsign", "tanhshrink")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{package}.{name}": getattr(torch.nn.functional, name)
    for name in _ACTIVATIONS
    if hasattr(torch.nn.functional, name)
    for package in ("torch.nn.functional", "torch._C._nn")
}


class UnbuiltError(ValueError):
    """Why a network cannot be written as plain data, or built from it, in a few words."""


def network_class(name: str) -> type[nn.Module] | None:
    """The class of layers that `name` ("module.Class") is, if it is on the positive list."""
    found = _looked_up(name)
    fits = isinstance(found, type) and issubclass(found, nn.Module) and not issubclass(found, fx.GraphModule)
    return found if fits else None


def dtype_named(name: str) -> torch.dtype:
    """The type of numbers "torch.NAME" or "NAME"; raises UnbuiltError where there is none."""
    found = vars(torch).get(name.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise UnbuiltError(f"{name[:80]!r} is not a type of numbers")
    return found


def named(name: str) -> Any:
    """What a name stands for in an attribute: a class of layers, an activation function, a type of numbers.

    Raises UnbuiltError for all else.
    """
    found = _looked_up(name) if name.startswith("timm.layers.activations.") else None
    activation = found if isinstance(found, types.FunctionType) else _FUNCTIONS.get(name)
    return network_class(name) or activation or dtype_named(name)


def member(name: str, value: Any) -> Any:
    """A member of an enumeration of timm's."""
    found = _looked_up(name)
    if not (isinstance(found, type) and issubclass(found, enum.Enum)) or type(value) not in (int, str):
        raise UnbuiltError(f"{name[:80]!r} is not an enumeration of timm's")
    return found(value)


def bound(name: str, keywords: Mapping[str, Any]) -> Any:
    """functools.partial(class, eps=1e-6); arguments that could be sizes are refused."""
    if not all(type(each) in (bool, float, str, type(None)) for each in keywords.values()):
        raise UnbuiltError("it binds arguments that could be sizes")
    return functools.partial(named(name), **keywords)


def _looked_up(name: str) -> Any:
    """What is defined under this name in one of the packages; None for what is only imported there."""
    module_name, _, attribute = name.rpartition(".")
    if not f"{module_name}.".startswith(_PACKAGES):
        return None
    if module_name.startswith("timm.") and "timm" not in sys.modules:
        try:
            import timm  # noqa: F401
        except ImportError:
            return None
    found = vars(sys.modules.get(module_name, types.SimpleNamespace())).get(attribute)
    return found if name_of(found) == name else None


def name_of(value: Any) -> str:
    """The name under which `value` is defined."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
