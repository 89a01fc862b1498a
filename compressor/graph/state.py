"""What a model's code may change while it runs, and the way back to how it was.

A forward caches on the module, appends to a list of a hook's, counts in a buffer, fills a dictionary of its class or a
`functools.cache`: each of them makes the next run another one. All that the model's code can reach by name is noted
once, without copying what it holds, and put back in place after every run.
"""

import collections
import functools
import itertools
import operator
import random
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.graph.copies import CONSTANTS, is_constant, is_users

_MOST = 50_000  # objects that are noted
_LARGE = 10_000  # entries of a container, above which it is data


class State:
    """The state of a model as it is when this is made."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """`modules` are all of the model's."""
        self._seen: dict[int, Any] = {}
        self._undo: list[Callable[[], None]] = []
        self._spaces: list[dict[str, Any]] = []  # attributes of modules and objects, and plain dicts
        self._empty: list[Any] = []
        self._kinds: set[type] = set()
        self._tensors: list[Tensor] = []  # buffers and other tensors that are no parameters
        self._waiting: list[Any] = []
        self._held: list[tuple[nn.Module, str, Any]] = []
        for module in modules:
            self._seen[id(module)] = module
            self._note(module)
        self.held = tuple(self._held)  # by attributes of the model's modules, but for numbers, texts and nothing
        while self._waiting and len(self._seen) < _MOST:
            one = self._waiting.pop()
            if type(one) not in CONSTANTS and id(one) not in self._seen:
                self._seen[id(one)] = one
                self._note(one)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is changed meanwhile is as before afterwards."""
        spaces = [held.copy() if isinstance(held, dict) else dict(held.items()) for held in self._spaces]  # torch.jit's
        shapes = [tensor.shape for tensor in self._tensors]
        before = [(tensor, tensor.detach().clone()) for tensor in self._tensors if not tensor.is_meta]
        try:
            yield
        finally:
            self._put_back(spaces)
            for tensor, shape in zip(self._tensors, shapes, strict=True):
                if tensor.shape != shape and tensor.is_meta:
                    tensor.data = torch.empty(shape, dtype=tensor.dtype, device="meta")
            for tensor, data in before:
                tensor.data = data

    def _put_back(self, before: list[dict[str, Any]]) -> None:
        """Attributes as the run found them, which an edit for a trial may have changed; all else as it was noted."""
        if not same(self._spaces, before):
            for held, kept in zip(self._spaces, before, strict=True):
                if not same([held], [kept]):
                    held.clear()
                    held.update(kept)
        if any(self._empty):
            for container in self._empty:
                container.clear()
        for undo in self._undo:
            undo()

    def _note(self, one: Any) -> None:
        kind: Any = type(one)
        noted = _noted_as(kind)
        if noted is not None:
            noted(self, one)

    def _tensor(self, tensor: Tensor) -> None:
        if not isinstance(tensor, nn.Parameter):
            self._tensors.append(tensor)

    def _cached(self, function: Any) -> None:
        function.cache_clear()
        self._undo.append(function.cache_clear)
        self._waiting.append(function.__wrapped__)

    def _module(self, module: nn.Module) -> None:
        held = vars(module)
        self._spaces.append(held)
        for name, value in held.items():
            kind = type(value)
            if kind in CONSTANTS:
                continue
            if kind in _PLAIN and not value:
                self._empty.append(value)
            elif name in ("_parameters", "_buffers", "_modules"):
                self._spaces.append(value)
                if name != "_parameters":
                    self._waiting.extend(value.values())
            elif not is_constant(value):
                self._held.append((module, name, value))
                self._waiting.append(value)
        if type(module) not in self._kinds:
            self._kinds.add(type(module))
            self._waiting.append(type(module))

    def _container(self, one: Any) -> None:
        if type(one) is dict and len(one) <= _LARGE:
            self._spaces.append(one)
            self._waiting.extend(one.values())
            return
        base = next(kind for kind in _BASES if isinstance(one, kind))  # what the user's class makes of it is not asked
        if base.__len__(one) > _LARGE:
            return
        kept = dict(base.items(one)) if isinstance(one, dict) else list(base.__iter__(one))
        self._waiting.extend(kept.values() if isinstance(kept, dict) else kept)
        self._undo.append(lambda: _refill(one, base, kept))
        if type(one) not in _PLAIN and hasattr(one, "__dict__"):
            self._object(one)

    def _object(self, one: Any) -> None:
        if hasattr(one, "__dict__"):
            held = vars(one)
            self._spaces.append(held)
            self._waiting.extend(held.values())
        for kind in type(one).__mro__:
            for slot in vars(kind).values() if "__slots__" in vars(kind) else ():
                if isinstance(slot, types.MemberDescriptorType):
                    self._slot(slot, one)
        self._waiting.append(type(one))

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if is_users(base) and (base is kind or id(base) not in self._seen):
                self._seen[id(base)] = base
                for name, value in vars(base).items():
                    if not (name.startswith("__") and name.endswith("__") and not callable(value)):
                        self._attribute(base, name, value)

    def _attribute(self, owner: Any, name: str, value: Any) -> None:
        """An attribute of a class, a global variable's module, or the content of a closure's cell."""
        if not (isinstance(value, types.FunctionType | property | staticmethod | classmethod)):
            self._undo.append(lambda: _bind(owner, name, value))
        self._waiting.append(value)

    def _slot(self, slot: types.MemberDescriptorType, one: Any) -> None:
        """By its own descriptor: a class below may have something else of its name."""
        value = _content(slot, one)
        self._undo.append(lambda: _fill(slot, one, value))
        self._waiting.append(value)

    def _function(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self._attribute(cell, "cell_contents", getattr(cell, "cell_contents", _MISSING))
        self._waiting += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if not is_users(function):
            return
        self._waiting.append(vars(function))
        names, stored = _names(function.__code__), _stored(function.__code__)
        spaces = [function.__globals__]
        held = map(function.__globals__.get, names)
        spaces += [vars(value) for value in held if isinstance(value, types.ModuleType) and is_users(value)]
        for space in spaces:
            for name in names:
                if name in space or name in stored:
                    place = hash((id(space), name))
                    if place not in self._seen:
                        self._seen[place] = space
                        self._global(space, name)

    def _global(self, space: dict[str, Any], name: str) -> None:
        value = space.get(name, _MISSING)
        if not isinstance(value, types.FunctionType | types.ModuleType | type):
            self._undo.append(lambda: _rebind(space, name, value))
        self._waiting.append(value)

    def _generator(self, source: Any) -> None:
        if isinstance(source, random.Random):
            self._undo.append(functools.partial(source.setstate, source.getstate()))
        elif isinstance(source, np.random.Generator):
            bits, state = source.bit_generator, source.bit_generator.state
            self._undo.append(lambda: setattr(bits, "state", state))
        else:
            self._undo.append(functools.partial(source.set_state, source.get_state()))


def same(ones: Collection[dict[str, Any]], others: Collection[dict[str, Any]]) -> bool:
    """Whether the same objects stand in both, one dict beside another."""
    now, then = (itertools.chain.from_iterable([held.values() for held in each]) for each in (ones, others))
    return [*map(len, ones)] == [*map(len, others)] and all(map(operator.is_, now, then))


_Noted = Callable[[State, Any], None]
_WAYS: tuple[tuple[Any, _Noted], ...] = (
    (Tensor, State._tensor),
    (nn.Module, State._module),
    (dict | list | set | collections.deque, State._container),
    (tuple | frozenset, lambda state, one: state._waiting.extend(one)),
    (types.FunctionType, State._function),
    (types.MethodType, lambda state, one: state._waiting.extend((one.__self__, one.__func__))),
    (functools.partial, lambda state, one: state._waiting.extend((one.func, *one.args, *one.keywords.values()))),
    (functools._lru_cache_wrapper, State._cached),
    (staticmethod | classmethod, lambda state, one: state._waiting.append(one.__func__)),
    (property, lambda state, one: state._waiting.append(one.fget)),
    (functools.cached_property, lambda state, one: state._waiting.append(one.func)),
    (type, State._class),
    (random.Random | np.random.Generator | np.random.RandomState | torch.Generator, State._generator),
    (types.SimpleNamespace | collections.UserDict, State._object),
)


@functools.cache
def _noted_as(kind: type) -> _Noted | None:
    """How an object of this class is noted, if at all."""
    found = (note for base, note in _WAYS if issubclass(kind, base))
    return next(found, State._object if is_users(kind) else None)


_MISSING = object()
_BASES: tuple[Any, ...] = (collections.OrderedDict, dict, list, set, collections.deque)
_PLAIN = frozenset(
    {dict, list, set, collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter}
)


@functools.cache
def _names(code: types.CodeType) -> frozenset[str]:
    inner = (names for const in code.co_consts if isinstance(const, types.CodeType) for names in _names(const))
    return frozenset((*code.co_names, *inner))


@functools.cache
def _stored(code: types.CodeType) -> frozenset[str]:
    """Global names that the code binds."""
    import dis

    return frozenset(str(step.argval) for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL")


def _refill(one: Any, base: Any, kept: Any) -> None:
    same = base.__len__(one) == len(kept) and all(map(operator.is_, base.__iter__(one), kept))
    if same and (not isinstance(kept, dict) or all(map(operator.is_, base.values(one), kept.values()))):
        return
    base.clear(one)
    if isinstance(kept, dict):
        for key, value in kept.items():
            base.__setitem__(one, key, value)
    else:
        (base.update if base is set else base.extend)(one, kept)


def _content(slot: types.MemberDescriptorType, one: Any) -> Any:
    try:
        return slot.__get__(one)
    except AttributeError:
        return _MISSING


def _fill(slot: types.MemberDescriptorType, one: Any, value: Any) -> None:
    if _content(slot, one) is value:
        return
    if value is _MISSING:
        slot.__delete__(one)
    else:
        slot.__set__(one, value)


def _bind(owner: Any, name: str, value: Any) -> None:
    held = vars(owner).get(name, _MISSING) if isinstance(owner, type) else getattr(owner, name, _MISSING)
    if held is value:
        return
    if value is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _rebind(space: dict[str, Any], name: str, value: Any) -> None:
    if space.get(name, _MISSING) is value:
        return
    if value is _MISSING:
        space.pop(name, None)
    else:
        space[name] = value
