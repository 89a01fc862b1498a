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
import math
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor import vision  # noqa: F401  its import puts torchvision's modules where the classes are looked up

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
_KEPT = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}  # of every layer; which building makes
_OWN = frozenset(dir(nn.Module)) | _KEPT  # what no attribute of a file replaces

# What recurrent layers keep besides their parameters, and make again from them.
_DERIVED = ("_flat_weights", "_flat_weight_refs")

_MOST_LAYERS = 100_000  # counting a layer that is in the network twice as a walk through the network does
_MOST_VALUES = 1_000_000
_DEEPEST_LAYER, _DEEPEST_VALUE = 100, 20
_LONGEST_TEXT = 100_000
_LARGEST_NUMBER = 2**63


class TreeError(ValueError):
    """Why a network cannot be written as plain data, or built from it, in a few words."""


def describe(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The tree of a network and its tensors by name; tied parameters are one tensor under two names.

    Hooks are left out, unless they compute a weight. Raises TreeError for a network with a class or an attribute that
    no file may hold, and names it.
    """
    walk = Describer(_opened, _form)
    return walk.layer(module, ""), walk.tensors


def build(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a tree, on the tensors themselves, in training mode.

    Raises TreeError for a tree that is damaged or holds what no file may hold.
    """
    try:
        return _Builder(tensors).layer(tree, "")
    except TreeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise TreeError(f"its description is damaged: {type(error).__name__}: {first[:200]}") from error


def network_class(name: str) -> type[nn.Module] | None:
    """The class of layers that `name` ("module.Class") is, if it is on the positive list."""
    found = _looked_up(name)
    fits = isinstance(found, type) and issubclass(found, nn.Module) and not issubclass(found, fx.GraphModule)
    return found if fits else None


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
    defined = (getattr(found, "__module__", None), getattr(found, "__qualname__", None))
    return found if defined == (module_name, attribute) else None


def _function(name: str) -> Callable[..., Any] | None:
    found = _looked_up(name) if name.startswith("timm.layers.activations.") else None
    return found if isinstance(found, types.FunctionType) else _FUNCTIONS.get(name)


@dataclass
class Describer:
    """Writes trees of live layers, or of what a file holds in their place; `tensors` are those met on the way."""

    opened: Callable[[Any], tuple[str, Mapping[str, Any]]]  # class and attributes of a layer; raises TreeError
    special: Callable[[Any], Any]  # the form of a value that is not plain, None where there is none
    tensors: dict[str, Any] = field(default_factory=dict)
    _paths: dict[int, str | None] = field(default_factory=dict)  # of each layer by identity; None while inside it
    _values: int = 0

    def layer(self, layer: Any, path: str) -> dict[str, Any]:
        """The tree of one layer."""
        if id(layer) in self._paths:
            if self._paths[id(layer)] is None:
                raise TreeError(f"{path} contains itself")
            return {"same": self._paths[id(layer)]}
        self._paths[id(layer)] = None
        if path.count(".") > _DEEPEST_LAYER or len(self._paths) > _MOST_LAYERS:
            raise TreeError("it has more layers than any network")
        name, held = self.opened(layer)
        kind = network_class(name)
        if kind is None:
            raise TreeError(f"{path or 'the network'} is a {name}, which is not a class of torch, torchvision or timm")
        attributes = {
            _free(key, kind): self._attribute(value, f"{path}.{key}".lstrip("."))
            for key, value in held.items()
            if key not in _KEPT and not (key in _DERIVED and issubclass(kind, nn.RNNBase))
        }
        transient = held.get("_non_persistent_buffers_set", ())
        tree = {
            "class": name,
            "attributes": attributes,
            "parameters": {key: self._tensor(value, path, key) for key, value in held["_parameters"].items()},
            "buffers": {
                key: None if self._tensor(value, path, key) is None else key not in transient
                for key, value in held["_buffers"].items()
            },
            "children": {
                key: None if child is None else self.layer(child, _joined(path, key))
                for key, child in held["_modules"].items()
            },
        }
        self._paths[id(layer)] = path
        return tree

    def _tensor(self, tensor: Any, path: str, key: str) -> bool | None:
        if tensor is None:
            return None
        self.tensors[_joined(path, key)] = tensor
        return bool(getattr(tensor, "requires_grad", True))

    def _attribute(self, value: Any, where: str, depth: int = 0) -> Any:
        """The form of a value in JSON: itself, a list, or a dict of one entry that says what it is."""
        self._values += 1
        if self._values > _MOST_VALUES or depth > _DEEPEST_VALUE:
            raise TreeError(f"{where} holds more values than any layer")
        kind = type(value)
        if kind is float and not math.isfinite(value):
            return {"float": str(value)}
        if value is None or kind in (bool, int, float, str):
            return value

        def inner(values: Any) -> list[Any]:
            return [self._attribute(each, where, depth + 1) for each in values]

        if kind is list:
            return inner(value)
        if kind in (tuple, torch.Size, set, frozenset):
            return {_COLLECTIONS[kind]: inner(value)}
        if kind in (dict, OrderedDict):
            return {"dict": [inner(pair) for pair in dict.items(value)]}
        form = self.special(value)
        if isinstance(form, Plain):
            described = self._attribute(form.value, where, depth + 1)
            return described if form.collection is None else {form.collection: described}
        if form is None:
            name = getattr(value, "name", None) or f"{kind.__module__}.{kind.__qualname__}"
            raise TreeError(f"{where} is a {name}, which is not a plain value")
        return form


@dataclass(frozen=True)
class Plain:
    """A plain value in place of another one, or the values that a collection is made of."""

    value: Any
    collection: str | None = None  # "size", "set", ...


_COLLECTIONS: dict[type, str] = {tuple: "tuple", torch.Size: "size", set: "set", frozenset: "frozenset"}


def _opened(layer: Any) -> tuple[str, Mapping[str, Any]]:
    """Class and attributes of a live layer."""
    for hook in layer._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            raise TreeError(
                f"a {type(layer).__name__} computes its weight in a hook ({type(hook).__name__}): remove it first, "
                "torch.nn.utils.remove_weight_norm and the like keep the weight"
            )
    # Tensors that are neither parameters nor buffers are left over from a run: no published class keeps its own there.
    held = {key: value for key, value in vars(layer).items() if not isinstance(value, Tensor)}
    return f"{type(layer).__module__}.{type(layer).__qualname__}", held


def _form(value: Any) -> Any:
    """The form of a live object in an attribute."""
    if isinstance(value, functools.partial):
        return partial_form(_form(value.func), value.args, value.keywords)
    if isinstance(value, enum.Enum):
        return enum_form(_name_of(type(value)), value.value)
    if isinstance(value, (bool, int, float, str)):  # of a subclass, numpy's numbers among them
        return Plain(next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)))
    return name_form(str(value) if isinstance(value, torch.dtype) else _name_of(value))


def _name_of(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def name_form(name: str) -> Any:
    """The form of what a name stands for: a class, an activation function, a type of numbers; None for all else."""
    if network_class(name) is not None:
        return {"class": name}
    if _function(name) is not None:
        return {"function": name}
    return {"dtype": name} if isinstance(dtype_named(name), torch.dtype) else None


def partial_form(of: Any, arguments: Any, keywords: Mapping[str, Any]) -> Any:
    """The form of functools.partial(class, eps=1e-6); None with arguments that could be sizes."""
    plain = all(type(each) in (bool, float, str, type(None)) for each in keywords.values())
    return {"partial": [of, dict(keywords)]} if of is not None and not arguments and plain else None


def enum_form(name: str, value: Any) -> Any:
    """The form of a member of an enumeration of timm's."""
    found = _looked_up(name)
    member = isinstance(found, type) and issubclass(found, enum.Enum) and type(value) in (int, str)
    return {"enum": [name, value]} if member else None


def dtype_named(name: str) -> torch.dtype | None:
    """The type of numbers "torch.NAME"; None where there is none."""
    found = vars(torch).get(name.removeprefix("torch."))
    return found if isinstance(found, torch.dtype) else None


@dataclass
class _Builder:
    tensors: Mapping[str, Tensor]
    _layers: dict[str, tuple[nn.Module, int]] = field(default_factory=dict)  # with the number of layers inside
    _parameters: dict[int, nn.Parameter] = field(default_factory=dict)  # by the identity of their tensor

    def layer(self, tree: Mapping[str, Any], path: str, depth: int = 0) -> nn.Module:
        """One layer with those inside it."""
        if depth > _DEEPEST_LAYER:
            raise TreeError("its layers are nested too deeply")
        kind = network_class(str(tree["class"]))
        if kind is None:
            raise TreeError(f"it asks for {tree['class']!r}, which is not a class of torch, torchvision or timm")
        layer: Any = object.__new__(kind)
        nn.Module.__init__(layer)
        restore: Any = (
            nn.Module.__setstate__ if issubclass(kind, nn.RNNBase) else kind.__setstate__
        )  # older torch's state
        restore(layer, {_free(key, kind): _value(form) for key, form in tree["attributes"].items()})
        for key, trained in tree["parameters"].items():
            layer._parameters[_free(key, kind)] = None if trained is None else self._parameter(path, key, trained)
        for key, kept in tree["buffers"].items():
            layer._buffers[_free(key, kind)] = None if kept is None else self.tensors[_joined(path, key)]
            if kept is False:
                layer._non_persistent_buffers_set.add(key)
        count = 1
        for key, child in tree["children"].items():
            layer._modules[_free(key, kind)] = None
            if child is None:
                continue
            inner = _joined(path, key)
            if "same" not in child:
                self.layer(child, inner, depth + 1)
            layer._modules[key], size = self._layers[child.get("same", inner)]
            count += size
        if count > _MOST_LAYERS:
            raise TreeError("it has more layers than any network")
        if isinstance(layer, nn.RNNBase):
            layer._init_flat_weights()
        self._layers[path] = layer, count
        return layer  # type: ignore[no-any-return]

    def _parameter(self, path: str, key: str, trained: bool) -> nn.Parameter:
        tensor = self.tensors[_joined(path, key)]
        if id(tensor) not in self._parameters:
            self._parameters[id(tensor)] = nn.Parameter(tensor, requires_grad=trained)
        return self._parameters[id(tensor)]


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _free(key: Any, kind: type[nn.Module]) -> str:
    """A name of a layer, tensor or attribute; torch writes it into the code that it makes of a network."""
    if type(key) is not str or not _NAME.fullmatch(key) or keyword.iskeyword(key):
        raise TreeError(f"{str(key)[:40]!r} is not a name of letters, digits and underscores")
    if key in _OWN or key.startswith("__") or callable(getattr(kind, key, None)):
        raise TreeError(f"{key!r} would replace what a {kind.__name__} has of its class")
    return key


def _value(form: Any) -> Any:
    """An attribute's value out of its form."""
    if isinstance(form, list):
        return [_value(each) for each in form]
    if isinstance(form, str) and len(form) > _LONGEST_TEXT:
        raise TreeError(f"it has a text of {len(form):,} characters")
    if type(form) is int and abs(form) >= _LARGEST_NUMBER:
        raise TreeError(f"it has a number of {form.bit_length()} bits")
    if not isinstance(form, dict):
        return form
    ((kind, held),) = form.items()
    return _READ[kind](held)


def _class(name: str) -> Any:
    found = network_class(name)
    if found is None:
        raise TreeError(f"{name[:80]!r} is not a class of torch, torchvision or timm")
    return found


def _known_function(name: str) -> Any:
    found = _function(name)
    if found is None:
        raise TreeError(f"{name[:80]!r} is not an activation function of torch or timm")
    return found


def _member(held: list[Any]) -> Any:
    name, value = held
    if enum_form(name, value) is None:
        raise TreeError(f"{name[:80]!r} is not an enumeration of timm's")
    return _looked_up(name)(value)


def _partial(held: list[Any]) -> Any:
    of, keywords = held
    form = partial_form(of, (), keywords)
    if form is None:
        raise TreeError("it binds arguments that could be sizes")
    return functools.partial(_value(of), **keywords)


def _dtype(name: str) -> torch.dtype:
    found = dtype_named(name)
    if found is None:
        raise TreeError(f"{name[:40]!r} is not a type of numbers")
    return found


_READ: dict[str, Callable[[Any], Any]] = {
    "float": lambda held: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[held],
    "tuple": lambda held: tuple(_value(held)),
    "size": lambda held: torch.Size(_value(held)),
    "set": lambda held: set(_value(held)),
    "frozenset": lambda held: frozenset(_value(held)),
    "dict": lambda held: {_value(key): _value(each) for key, each in held},
    "dtype": _dtype,
    "class": _class,
    "function": _known_function,
    "enum": _member,
    "partial": _partial,
}
