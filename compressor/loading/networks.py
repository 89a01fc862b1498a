"""A network whose classes are all published ones (torch, torchvision, timm) as plain data, and built again from it.

The description is `{"layers": tree, "tensors": {name: [type, sizes], or the name of the tensor that it is}}`, which
JSON can hold. The tree of a layer is `{"class": "torch.nn.modules.conv.Conv2d", "attributes": {...}, "parameters":
{name: it is trained}, "buffers": {name: it is in the state dict}, "children": {name: tree}}`, and `"forward": name` if
another method of the class is in its place (timm's FasterNet). None stands for a parameter, buffer or child that is
None, `{"same": "features.0"}` for a layer that is in the network twice. Building runs no constructor and nothing that
the data name: classes are looked up in a positive list, attributes are plain values, and nothing else may replace a
method.
"""

import enum
import functools
import keyword
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import one_line
from compressor.loading.forms import decode, encode, number
from compressor.loading.proportion import UnbuiltError, bound, dtype_named, member, name_of, named, network_class

_NAME = re.compile(r"[A-Za-z0-9_]+(?:-[0-9]+)?")  # RegNet of torchvision has a "block1-0"
_KEPT = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}  # of every layer, which building makes
_OWN = frozenset(dir(nn.Module)) | _KEPT  # what no attribute of a file replaces

# What recurrent layers keep besides their parameters, and make again from them.
_DERIVED = ("_flat_weights", "_flat_weight_refs")

_MOST_LAYERS = 100_000  # counting a layer that is in the network twice as a walk through the network does
_DEEPEST = 100  # layers in one another


class OwnMethod(str):
    """The name of a method that a layer of this class has in place of `forward`."""


class Skeleton(nn.Module):
    """A layer out of a pickle: its tensors and the layers in it, the name of its class, and what it keeps besides."""

    def __init__(self, name: str, held: Mapping[str, Any], form: Callable[[Any, str], Any]) -> None:
        super().__init__()
        self.name, self.held, self.form = name, held, form


def describe(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A network or a Skeleton as plain data, and its tensors by name; tied parameters are one tensor under two names.

    Hooks of a live network are left out, unless they compute a weight. Raises UnbuiltError for a network with a class
    or an attribute that no file may hold, and names it.
    """
    tensors: dict[str, Tensor] = {}
    paths: dict[int, str] = {}

    def described(layer: nn.Module, path: str) -> dict[str, Any]:
        if id(layer) in paths:
            return {"same": paths[id(layer)]}
        paths[id(layer)] = path
        name, held, form = _of(layer, path or "the network")
        kind = network_class(name)
        if kind is None or type(layer) not in (Skeleton, kind):
            told = f"{path or 'the network'} is a {name}"
            raise UnbuiltError(f"{told}, which is not a class of torch, torchvision or timm")
        own, forward = {**layer._parameters, **layer._buffers}, held.get("forward")
        tensors.update({_joined(path, key): tensor for key, tensor in own.items() if tensor is not None})
        return {
            "class": name,
            **({"forward": str(forward)} if type(forward) is OwnMethod else {}),
            "attributes": {
                key: encode(value, _joined(path, key), form)
                for key, value in _attributes_of(held, kind).items()
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

    with one_line("its description is damaged: ", "", UnbuiltError):
        try:
            layers = described(module, "")
        except TypeError as error:  # of a value that has no form
            raise UnbuiltError(str(error)) from error
    first: dict[int, str] = {}
    sizes = {
        name: first[id(tensor)]
        if first.setdefault(id(tensor), name) != name
        else [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in tensors.items()
    }
    return {"layers": layers, "tensors": sizes}, tensors


def blank(description: Mapping[str, Any], most_bytes: float = float("inf")) -> nn.Module:
    """The network of a description, with weights of zero.

    Raises UnbuiltError as `build` does, and for one of more than `most_bytes`.
    """
    tensors: dict[str, Tensor] = {}
    left = most_bytes
    with one_line("its description is damaged: ", "", UnbuiltError):
        for name, form in description["tensors"].items():
            if isinstance(form, str):
                tensors[name] = tensors[form]
                continue
            meta = torch.empty(form[1], dtype=dtype_named(form[0]), device="meta")
            left -= meta.nbytes
            if left < 0:
                raise UnbuiltError("its layers are out of all proportion to its weights")
            tensors[name] = torch.zeros_like(meta, device="cpu")
    return build(description, tensors)


def build(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a description, on the tensors themselves, in training mode.

    Raises UnbuiltError for a description that is damaged or holds what no file may hold.
    """
    layers: dict[str, nn.Module] = {}
    parameters: dict[int, nn.Parameter] = {}  # by the identity of their tensor

    def parameter(name: str, trained: bool) -> nn.Parameter:
        tensor = tensors[name]
        return parameters.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=trained))

    def built(form: Mapping[str, Any], path: str) -> nn.Module:
        if "same" in form:
            return layers[form["same"]]
        kind = network_class(str(form["class"]))
        if kind is None:
            raise UnbuiltError(
                f"it asks for {str(form['class'])!r}, which is not a class of torch, torchvision or timm"
            )
        layer: Any = object.__new__(kind)
        nn.Module.__init__(layer)
        # What a class does on being restored completes older versions' state; recurrent layers want more.
        restored: Any = nn.Module if issubclass(kind, nn.RNNBase) else kind
        attributes = {_free(key, kind): decode(value, _READ) for key, value in form["attributes"].items()}
        restored.__setstate__(layer, attributes)
        if "forward" in form:
            layer.forward = types.MethodType(_method(form["forward"], kind), layer)
        for key, trained in form["parameters"].items():
            layer._parameters[_free(key, kind)] = None if trained is None else parameter(_joined(path, key), trained)
        for key, kept in form["buffers"].items():
            layer._buffers[_free(key, kind)] = None if kept is None else tensors[_joined(path, key)]
            if kept is False:
                layer._non_persistent_buffers_set.add(key)
        for key, child in form["children"].items():
            inside = None if child is None else built(child, _joined(path, key))
            layer._modules[_free(key, kind)] = inside
        if isinstance(layer, nn.RNNBase):
            layer._init_flat_weights()
        layers[path] = layer
        return layers[path]

    with one_line("its description is damaged: ", "", UnbuiltError):
        return checked(built(description["layers"], ""))


def checked(module: nn.Module) -> nn.Module:
    """The module, where a walk through it ends. Raises UnbuiltError where its layers multiply, or lie too deep."""
    sizes: dict[int, tuple[int, int]] = {}  # of a layer: how many are in it, itself one of them, and how deep

    def size(layer: nn.Module) -> tuple[int, int]:
        if id(layer) not in sizes:
            inside = [size(child) for child in layer._modules.values() if child is not None]
            sizes[id(layer)] = 1 + sum(count for count, _ in inside), 1 + max([0, *(depth for _, depth in inside)])
        return sizes[id(layer)]

    count, depth = size(module)
    if count > _MOST_LAYERS or depth > _DEEPEST:
        raise UnbuiltError(f"it has more layers than any network ({count:,}, {depth} in one another)")
    return module


_READ: dict[str, Callable[[Any], Any]] = {
    "$name": named,
    "$member": lambda held: member(*held),
    "$partial": lambda held: bound(*held),
}


def _live_form(value: Any, where: str) -> Any:
    """The form of a live object in an attribute; None where no file may hold it."""
    try:
        if isinstance(value, functools.partial):
            name = name_of(value.func)
            bound(name, value.keywords)
            return None if value.args else {"$partial": [name, value.keywords]}
        if isinstance(value, enum.Enum):
            return {"$member": [name_of(type(value)), member(name_of(type(value)), value.value).value]}
        name = str(value) if isinstance(value, torch.dtype) else name_of(value)
        return {"$name": name} if named(name) is value else None
    except UnbuiltError:
        return None if isinstance(value, enum.Enum) else number(value, where)


def _of(layer: nn.Module, where: str) -> tuple[str, Mapping[str, Any], Callable[[Any, str], Any]]:
    """The class of a layer by its name, what it holds, and what gives the form of values there."""
    if isinstance(layer, Skeleton):
        for key, value in layer.held.items():
            if str(key).endswith("_hooks") and value:
                raise UnbuiltError(f"{where} comes with {key}")
        return layer.name, layer.held, layer.form
    for hook in layer._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            raise UnbuiltError(
                f"a {type(layer).__name__} computes its weight in a hook ({type(hook).__name__}): remove it first, "
                "torch.nn.utils.remove_weight_norm and the like keep the weight"
            )
    held = vars(layer)
    if getattr(held.get("forward"), "__self__", None) is layer:
        held = {**held, "forward": OwnMethod(held["forward"].__name__)}
    return name_of(type(layer)), held, _live_form


def _method(name: str, kind: type[nn.Module]) -> types.FunctionType:
    found = vars(kind).get(name)
    if not isinstance(found, types.FunctionType) or not name.startswith("forward_"):
        raise UnbuiltError(f"{name[:80]!r} is not a forward_... of a {kind.__name__}")
    return found


def _attributes_of(held: Mapping[str, Any], kind: type[nn.Module]) -> dict[str, Any]:
    """What a layer of a class holds besides what every layer has, and what it makes by itself.

    Raises UnbuiltError where that would replace something of the class.
    """
    made = _KEPT.union(_DERIVED if issubclass(kind, nn.RNNBase) else ())
    own = {key: each for key, each in held.items() if key not in made and type(each) is not OwnMethod}
    return {_free(key, kind): value for key, value in own.items()}


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _free(key: Any, kind: type[nn.Module]) -> str:
    """A name of a layer, tensor or attribute; torch writes it into the code that it makes of a network."""
    if type(key) is not str or not _NAME.fullmatch(key) or keyword.iskeyword(key):
        raise UnbuiltError(f"{str(key)[:40]!r} is not a name of letters, digits and underscores")
    if key in _OWN or key.startswith("__") or callable(getattr(kind, key, None)):
        raise UnbuiltError(f"{key!r} would replace what a {kind.__name__} has of its class")
    return key
