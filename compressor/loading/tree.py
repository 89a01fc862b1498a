"""A network whose classes are all published ones (torch, torchvision, timm) as plain data, and built again from it.

The tree of a layer is `{"class": "torch.nn.modules.conv.Conv2d", "attributes": {...}, "parameters": {name: it is
trained}, "buffers": {name: it is in the state dict}, "children": {name: tree}}`, which JSON can hold; None stands for a
parameter, buffer or child that is None, `{"same": "features.0"}` for a layer that is in the network twice. Tensors are
beside it by their dotted names. Building runs no constructor and nothing that the data name: classes are looked up in
a positive list, attributes are plain values, and nothing may replace a method.
"""

from __future__ import annotations

import enum
import functools
import keyword
import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor import vision  # noqa: F401  its import puts torchvision's modules where the classes are looked up
from compressor.loading.plain import decode, encode
from compressor.text import first_line

# Where the classes are defined; not what is merely imported there.
_PACKAGES = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.")

# Functions that layers hold as attributes, besides timm's activations.
_ACTIVATIONS = (
    "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish relu relu6 selu sigmoid silu "
    "softmax softplus softsign tanh tanhshrink"
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{package}.{name}": getattr(torch.nn.functional, name)
    for name in _ACTIVATIONS.split()
    for package in ("torch.nn.functional", "torch._C._nn")
}

_NAME = re.compile(r"[A-Za-z0-9_]+(?:-[0-9]+)?")  # RegNet of torchvision has a "block1-0"
_KEPT = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}  # of every layer, which building makes
_OWN = frozenset(dir(nn.Module)) | _KEPT  # what no attribute of a file replaces

# What recurrent layers keep besides their parameters, and make again from them.
_DERIVED = ("_flat_weights", "_flat_weight_refs")

_MOST_LAYERS = 100_000  # counting a layer that is in the network twice as a walk through the network does
DEEPEST = 100  # layers in one another


class TreeError(ValueError):
    """Why a network cannot be written as plain data, or built from it, in a few words."""


def describe(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The tree of a network and its tensors by name; tied parameters are one tensor under two names.

    Hooks are left out, unless they compute a weight. Raises TreeError for a network with a class or an attribute that
    no file may hold, and names it.
    """
    tensors: dict[str, Tensor] = {}
    paths: dict[int, str] = {}

    def described(layer: nn.Module, path: str) -> dict[str, Any]:
        if id(layer) in paths:
            return {"same": paths[id(layer)]}
        paths[id(layer)] = path
        _check_hooks(layer)
        kind = type(layer)
        if network_class(_name_of(kind)) is not kind:
            told = f"{path or 'the network'} is a {_name_of(kind)}"
            raise TreeError(f"{told}, which is not a class of torch, torchvision or timm")
        held = {**layer._parameters, **layer._buffers}
        tensors.update({_joined(path, key): tensor for key, tensor in held.items() if tensor is not None})
        return {
            "class": _name_of(kind),
            "attributes": {
                key: encode(value, _joined(path, key), _form)
                for key, value in attributes_of(vars(layer), kind).items()
                # Other tensors are left over from a run: no published class keeps its own there.
                if not isinstance(value, Tensor)
            },
            "parameters": {
                key: None if each is None else each.requires_grad for key, each in layer._parameters.items()
            },
            "buffers": {
                key: None if each is None else key not in layer._non_persistent_buffers_set
                for key, each in layer._buffers.items()
            },
            "children": {
                key: None if child is None else described(child, _joined(path, key))
                for key, child in layer._modules.items()
            },
        }

    try:
        return described(module, ""), tensors
    except TypeError as error:
        raise TreeError(str(error)) from error


def build(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a tree, on the tensors themselves, in training mode.

    Raises TreeError for a tree that is damaged or holds what no file may hold.
    """
    layers: dict[str, nn.Module] = {}
    parameters: dict[int, nn.Parameter] = {}  # by the identity of their tensor

    def parameter(name: str, trained: bool) -> nn.Parameter:
        tensor = tensors[name]
        return parameters.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=trained))

    def built(form: Mapping[str, Any], path: str, depth: int) -> nn.Module:
        if "same" in form:
            return layers[form["same"]]
        if depth > DEEPEST:
            raise TreeError("its layers are nested too deeply")
        here = functools.partial(_joined, path)
        layers[path] = assemble(
            str(form["class"]),
            {key: decode(value, _READ) for key, value in form["attributes"].items()},
            {key: None if on is None else parameter(here(key), on) for key, on in form["parameters"].items()},
            {key: None if kept is None else tensors[here(key)] for key, kept in form["buffers"].items()},
            {key for key, kept in form["buffers"].items() if kept is False},
            {k: None if child is None else built(child, here(k), depth + 1) for k, child in form["children"].items()},
        )
        return layers[path]

    try:
        return checked(built(tree, "", 0))
    except TreeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise TreeError(f"its description is damaged: {type(error).__name__}: {first_line(error)}") from error


def attributes_of(held: Mapping[str, Any], kind: type[nn.Module]) -> dict[str, Any]:
    """What a layer of a class holds besides what every layer has, and what it makes by itself.

    Raises TreeError where that would replace something of the class.
    """
    derived = _DERIVED if issubclass(kind, nn.RNNBase) else ()
    return {_free(key, kind): value for key, value in held.items() if key not in _KEPT and key not in derived}


def assemble(
    name: str,
    attributes: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter | None],
    buffers: Mapping[str, Tensor | None],
    transient: set[str],
    children: Mapping[str, nn.Module | None],
) -> nn.Module:
    """A layer of the class `name` in training mode, from values that are plain.

    Raises TreeError for a class that is not on the positive list, and for names that no layer may have.
    """
    kind = network_class(name)
    if kind is None:
        raise TreeError(f"it asks for {name!r}, which is not a class of torch, torchvision or timm")
    layer: Any = object.__new__(kind)
    nn.Module.__init__(layer)
    # What a class does on being restored completes the state of older versions of torch; recurrent layers want more.
    restored: Any = nn.Module if issubclass(kind, nn.RNNBase) else kind
    restored.__setstate__(layer, {_free(key, kind): value for key, value in attributes.items()})
    for place, named in ((layer._parameters, parameters), (layer._buffers, buffers), (layer._modules, children)):
        place.update({_free(key, kind): value for key, value in named.items()})
    layer._non_persistent_buffers_set.update(transient)
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()
    return layer  # type: ignore[no-any-return]


def checked(module: nn.Module) -> nn.Module:
    """The module, where a walk through it ends. Raises TreeError where its layers multiply."""
    counts: dict[int, int] = {}

    def count(layer: nn.Module) -> int:
        if id(layer) not in counts:
            counts[id(layer)] = 1 + sum(count(child) for child in layer._modules.values() if child is not None)
        return counts[id(layer)]

    if count(module) > _MOST_LAYERS:
        raise TreeError("it has more layers than any network")
    return module


def network_class(name: str) -> type[nn.Module] | None:
    """The class of layers that `name` ("module.Class") is, if it is on the positive list."""
    found = _looked_up(name)
    fits = isinstance(found, type) and issubclass(found, nn.Module) and not issubclass(found, fx.GraphModule)
    return found if fits else None


def dtype_named(name: str) -> torch.dtype:
    """The type of numbers "torch.NAME" or "NAME"; raises TreeError where there is none."""
    found = vars(torch).get(name.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise TreeError(f"{name[:80]!r} is not a type of numbers")
    return found


def named(name: str) -> Any:
    """What a name stands for in an attribute: a class of layers, an activation function, a type of numbers.

    Raises TreeError for all else.
    """
    found = _looked_up(name) if name.startswith("timm.layers.activations.") else None
    activation = found if isinstance(found, types.FunctionType) else _FUNCTIONS.get(name)
    return network_class(name) or activation or dtype_named(name)


def member(name: str, value: Any) -> Any:
    """A member of an enumeration of timm's. Raises TreeError or ValueError where there is none."""
    found = _looked_up(name)
    if not (isinstance(found, type) and issubclass(found, enum.Enum)) or type(value) not in (int, str):
        raise TreeError(f"{name[:80]!r} is not an enumeration of timm's")
    return found(value)


def bound(name: str, keywords: Mapping[str, Any]) -> Any:
    """functools.partial(class, eps=1e-6). Raises TreeError with arguments that could be sizes."""
    if not all(type(each) in (bool, float, str, type(None)) for each in keywords.values()):
        raise TreeError("it binds arguments that could be sizes")
    return functools.partial(named(name), **keywords)


_READ: dict[str, Callable[[Any], Any]] = {
    "$name": named,
    "$member": lambda held: member(*held),
    "$partial": lambda held: bound(*held),
}


def _form(value: Any, where: str) -> Any:
    """The form of a live object in an attribute, for `encode`; None where no file may hold it."""
    if isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum):  # numpy's numbers among them
        return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
    try:
        if isinstance(value, functools.partial):
            bound(_name_of(value.func), value.keywords)
            return None if value.args else {"$partial": [_name_of(value.func), value.keywords]}
        if isinstance(value, enum.Enum):
            return {"$member": [_name_of(type(value)), member(_name_of(type(value)), value.value).value]}
        name = str(value) if isinstance(value, torch.dtype) else _name_of(value)
        return {"$name": name} if named(name) is value else None
    except TreeError:
        return None


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
    return found if _name_of(found) == name else None


def _name_of(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _check_hooks(layer: nn.Module) -> None:
    for hook in layer._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            raise TreeError(
                f"a {type(layer).__name__} computes its weight in a hook ({type(hook).__name__}): remove it first, "
                "torch.nn.utils.remove_weight_norm and the like keep the weight"
            )


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _free(key: Any, kind: type[nn.Module]) -> str:
    """A name of a layer, tensor or attribute; torch writes it into the code that it makes of a network."""
    if type(key) is not str or not _NAME.fullmatch(key) or keyword.iskeyword(key):
        raise TreeError(f"{str(key)[:40]!r} is not a name of letters, digits and underscores")
    if key in _OWN or key.startswith("__") or callable(getattr(kind, key, None)):
        raise TreeError(f"{key!r} would replace what a {kind.__name__} has of its class")
    return key
