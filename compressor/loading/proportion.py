"""What a file may name in a network, and that it asks for none out of all proportion to it.

Published layers, activations, types of numbers and timm's enumerations may be named; the network of an ONNX file
(loading.onnx_network) counts as published: it holds plain values and runs listed functions. How a network is built
again is for the file to say, so a file of a few bytes could ask for a million classes, or layers without end.
"""

import enum
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as registration

from compressor.errors import FileError
from compressor.files.limits import GIB
from compressor.graph.operators import of_kind
from compressor.loading import onnx_network
from compressor.loading.arch import Definition
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


# The fresh network may be so many times the one in the file, which was perhaps pruned, or this large in any case.
_TIMES = 64
_ALWAYS = GIB
_MODULES_A_TENSOR = 20
_MODULES_ALWAYS = 2000


class _Absurd(BaseException):
    """Passes through builders, which take any Exception for a wrong argument."""


@dataclass(frozen=True)
class Proportion:
    """How much of a network may be built for a file's sake."""

    path: Path
    most_bytes: int
    most_modules: int

    @classmethod
    def to(cls, state: Iterable[Any], path: Path) -> "Proportion":
        """What is in proportion to a file's weights."""
        tensors = [each for each in state if isinstance(each, Tensor)]
        held = sum(each.nbytes for each in tensors)
        return cls(path, max(_ALWAYS, _TIMES * held), _MODULES_ALWAYS + _MODULES_A_TENSOR * len(tensors))

    def build(self, definition: Definition) -> nn.Module:
        """Build an architecture with arguments out of the file.

        Raises FileError where the network gets out of proportion, UsageError where it cannot be built.
        """
        with self.watching():
            if not definition.arch.is_code:
                _rehearse(definition)  # nobody's own code is run twice
            return definition.build()

    def check(self, module: nn.Module) -> None:
        """Raises FileError where a network that was rebuilt got out of proportion."""
        if sum(each.nbytes for each in (*module.parameters(), *module.buffers())) > self.most_bytes:
            raise self._error()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stop what is built meanwhile as soon as it is too much."""
        seen = {"bytes": 0, "modules": 0}

        def tensor(_: nn.Module, __: str, value: Any) -> None:
            seen["bytes"] += value.nbytes if isinstance(value, Tensor) else 0
            if seen["bytes"] > self.most_bytes:
                raise _Absurd

        def module(_: nn.Module, __: str, ___: Any) -> None:
            seen["modules"] += 1
            if seen["modules"] > self.most_modules:
                raise _Absurd

        hooks = (
            registration.register_module_parameter_registration_hook(tensor),
            registration.register_module_buffer_registration_hook(tensor),
            registration.register_module_module_registration_hook(module),
        )
        try:
            yield
        except _Absurd:
            raise self._error() from None
        finally:
            for hook in hooks:
                hook.remove()

    def _error(self) -> FileError:
        return FileError(
            f"{self.path} asks for a network out of all proportion to its weights: it is damaged, or made to fill the "
            "memory"
        )


def _rehearse(definition: Definition) -> None:
    """Build once without memory, since some layers fill their weights before anyone is told of them."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            definition.build()
    except Exception:
        return  # some networks compute with their weights as they are built; the real attempt says what is wrong
