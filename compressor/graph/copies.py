"""Copies of what a module keeps as attributes. What cannot be copied (a lock, a file, a Python module) is shared.

`copy.deepcopy` fails as a whole where one attribute cannot be copied, keeps functions that refer to the original, and
calls `__deepcopy__` of the user's classes, which may return the object itself.
"""

import copy
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

Memo = dict[int, Any]  # id of an object -> its copy, as deepcopy keeps it
CONSTANTS = frozenset({int, float, str, bool, type(None), torch.dtype, torch.device})
_LIBRARIES = {"torch", "torchvision", "timm", "segmentation_models_pytorch", "huggingface_hub", "safetensors", "numpy",
              "scipy", "PIL", "compressor"}  # fmt: skip
_NOT_USERS = _LIBRARIES | sys.stdlib_module_names - {"__main__"}
_SHARED = (type, BuiltinFunctionType, ModuleType, torch.Size)


def is_constant(value: Any) -> bool:
    """Whether a value is a number, a text or the like, or a tuple of such."""
    kind = type(value)
    return kind in CONSTANTS or (kind is tuple and CONSTANTS.issuperset(map(type, value)))


def is_users(of: Any) -> bool:
    """Whether a class, function or module is the user's, whose names are worth following, not torch's or Python's."""
    name = of.__name__ if isinstance(of, ModuleType) else getattr(of, "__module__", "torch")
    return str(name).partition(".")[0] not in _NOT_USERS


def copied(value: Any, memo: Memo) -> Any:
    """A deep copy in which everything in `memo` is replaced by its copy; the value itself where it cannot be copied."""
    if is_constant(value):
        return value
    kind = type(value)
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is dict and all(id(held) in memo or held is None for held in value.values()):  # parameters, submodules
        return {key: memo.get(id(held)) for key, held in value.items()}
    if isinstance(value, Tensor):
        return _kept(value, _tensor(value), memo)
    copier = _COPIERS.get(kind)
    if copier is not None:
        return copier(value, memo)
    if isinstance(value, nn.Module) and not isinstance(value, HAVE_CODE):
        return _instance(value, memo)
    # A copy with `__del__` would close, when it goes, what the original still uses.
    if isinstance(value, _SHARED) or hasattr(kind, "__del__"):
        return value
    return _instance(value, memo) if _is_plain(value) else _deepcopied(value, memo)


_HOLDERS = frozenset({dict, OrderedDict, set})
HAVE_CODE = (fx.GraphModule, torch.jit.ScriptModule)  # modules that are more than their attributes


def begun(value: Any) -> tuple[dict[str, Any], list[str]]:
    """An object's attributes, where holders of nothing are new ones (most are: hooks of which there are none), and the
    names of those that are left to copy. What a module was compiled to in place is left out, as it runs the original.
    """
    made, rest = dict(vars(value)), []
    made.pop("_compiled_call_impl", None)
    for key, each in made.items():
        kind = type(each)
        if kind in CONSTANTS:
            continue
        if kind in _HOLDERS and not each:
            made[key] = kind()
        elif not is_constant(each):
            rest.append(key)
    return made, rest


def attributes(value: Any, memo: Memo) -> dict[str, Any]:
    """Copies of an object's attributes."""
    made, rest = begun(value)
    return made | {key: copied(made[key], memo) for key in rest}


def _kept(value: Any, result: Any, memo: Memo) -> Any:
    memo[id(value)] = result
    return result


def _deepcopied(value: Any, memo: Memo) -> Any:
    attempt = dict(memo)  # of a deepcopy that failed half of the objects may be in it
    try:
        result = copy.deepcopy(value, attempt)
    except Exception:  # the classes of the user's objects may raise anything
        return _instance(value, memo) if isinstance(value, fx.GraphModule) else value
    memo.setdefault(id(memo), []).extend(attempt.pop(id(attempt), ()))  # kept alive, so that no other has their ids
    memo.update(attempt)
    return result


def _tensor(value: Tensor) -> Tensor:
    result = value.detach().clone()
    if isinstance(value, nn.Parameter):
        return nn.Parameter(result, requires_grad=value.requires_grad)
    return result.requires_grad_(value.requires_grad and value.is_leaf)


def _mapping(value: Any, memo: Memo) -> Any:
    result = _kept(value, type(value)(), memo)
    for key, each in value.items():
        result[copied(key, memo)] = copied(each, memo)
    return result


def _list(value: list[Any], memo: Memo) -> list[Any]:
    result: list[Any] = _kept(value, [], memo)
    result.extend(copied(each, memo) for each in value)
    return result


def _collection(value: Any, memo: Memo) -> Any:
    return _kept(value, type(value)(copied(each, memo) for each in value), memo)


def _method(value: MethodType, memo: Memo) -> MethodType:
    return MethodType(value.__func__, copied(value.__self__, memo))


def _function(value: FunctionType, memo: Memo) -> Any:
    """The function itself, unless variables around it refer to what is copied: `lambda x: model.head(x)`."""
    if hasattr(value, "_torchdynamo_orig_callable"):  # what torch.compile made of it runs the original
        return copied(value._torchdynamo_orig_callable, memo)
    cells = value.__closure__
    if cells is None:
        return value
    fresh = tuple(CellType() for _ in cells)
    result = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, fresh)
    memo[id(value)] = result  # it may refer to itself
    changed = False
    for old, new in zip(cells, fresh, strict=True):
        try:
            held = old.cell_contents
        except ValueError:  # empty
            continue
        new.cell_contents = _relinked(held, memo)
        changed = changed or new.cell_contents is not held
    if not changed:
        return _kept(value, value, memo)
    result.__kwdefaults__ = value.__kwdefaults__
    vars(result).update(vars(value))
    return result


def _relinked(value: Any, memo: Memo) -> Any:
    """The value with what is in `memo` replaced; nothing else is copied, as a function may see a whole data set."""
    known = memo.get(id(value))
    if known is not None:
        return known
    if isinstance(value, MethodType):
        owner = memo.get(id(value.__self__))
        return value if owner is None else MethodType(value.__func__, owner)
    if isinstance(value, FunctionType):
        return _function(value, memo)
    if isinstance(value, _REFERENCES):
        return _reference(value, memo)
    if type(value) in (list, tuple):
        return type(value)(_relinked(each, memo) for each in value)
    if type(value) is dict:
        return {key: _relinked(each, memo) for key, each in value.items()}
    return value


def _reference(value: Any, memo: Memo) -> Any:
    """A weak reference, or a proxy, to the copy of its referent."""
    try:
        referent = value() if isinstance(value, weakref.ref) else value.__init__.__self__
    except ReferenceError:
        return value
    target = memo.get(id(referent))
    if target is None:
        return value
    return weakref.ref(target) if isinstance(value, weakref.ref) else weakref.proxy(target)


def _is_plain(value: Any) -> bool:
    """Whether a copy is a new object with copies of the attributes, which objects of the standard library are not."""
    kind = type(value)
    asked = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
    special = ("__deepcopy__", "__setstate__", "__slots__")
    same = all(getattr(kind, name) is getattr(object, name) for name in asked)
    own = kind.__module__.partition(".")[0] not in sys.stdlib_module_names
    return same and own and hasattr(value, "__dict__") and not any(hasattr(kind, name) for name in special)


def _instance(value: Any, memo: Memo) -> Any:
    result = _kept(value, object.__new__(type(value)), memo)
    vars(result).update(attributes(value, memo))
    return result


def _namespace(value: SimpleNamespace, memo: Memo) -> SimpleNamespace:
    result: SimpleNamespace = _kept(value, SimpleNamespace(), memo)
    vars(result).update(attributes(value, memo))
    return result


def _partial(value: Any, memo: Memo) -> Any:
    return partial(copied(value.func, memo), *copied(value.args, memo), **copied(value.keywords, memo))


_REFERENCES = (weakref.ref, weakref.ProxyType, weakref.CallableProxyType)
_COPIERS: dict[Any, Callable[[Any, Memo], Any]] = {
    dict: _mapping,
    OrderedDict: _mapping,
    list: _list,
    tuple: _collection,
    set: _collection,
    frozenset: _collection,
    FunctionType: _function,
    MethodType: _method,
    partial: _partial,
    SimpleNamespace: _namespace,
    **dict.fromkeys(_REFERENCES, _reference),
    torch.Generator: lambda value, memo: value.clone_state(),
}
