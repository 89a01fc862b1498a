"""Integers that a module keeps, as attributes or in the lists, dicts, namespaces and other objects that these hold.

A path names one: "groups", "kernel_size.0", "feature_info.1.num_chs".
"""

import argparse
import collections
import copy
import enum
import functools
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from compressor.errors import ModelError
from compressor.graph.copies import CONSTANTS, is_constant

OWN = frozenset(vars(nn.Module()))  # what `torch.nn.Module` itself keeps
_SPACES = (types.SimpleNamespace, argparse.Namespace, collections.UserDict)
_CLOSED = (nn.Module, torch.Tensor, type, types.ModuleType, enum.Enum, torch.Size)
_OTHERS = {"torch", "torchvision", "numpy", *sys.stdlib_module_names} - {"__main__"}  # whose objects are no settings
_DEPTH, _MOST = 3, 1000  # containers in each other, entries of one; more is data
_WORDS = frozenset(
    """feature features channel channels plane planes inplanes outplanes filter filters width widths hidden embed dim
    dims chs chan chans ch nf inp oup intermediate""".split()  # noqa: SIM905 - a list of words
)
_NO_WIDTHS = frozenset({"layers", "axis", "experts"})  # "num_hidden_layers"


def integers(module: nn.Module, *, widths: bool = False) -> Iterator[tuple[str, int]]:
    """Every integer with its path, or those alone that are called as `widths`; what `torch.nn.Module` itself keeps is
    left out.
    """
    space = vars(module)
    for name in _of_the_class(tuple(space)):
        held = space[name]
        if type(held) is int:
            if not widths or counts_channels(name):
                yield name, held
        elif type(held) in CONSTANTS or (widths and is_constant(held) and not counts_channels(name)):
            continue
        else:
            yield from (each for each in _below(name, held, _DEPTH) if not widths or counts_channels(each[0]))


@functools.cache
def _of_the_class(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of a module's attributes those that `torch.nn.Module` does not keep; most layers have the same ones."""
    return tuple(name for name in names if name not in OWN)


def _below(path: str, held: Any, depth: int) -> Iterator[tuple[str, int]]:
    if type(held) is int:
        yield path, held
    elif depth:
        for key, each in _entries(held):
            yield from _below(f"{path}.{key}", each, depth - 1)


def _entries(held: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(held, _CLOSED):
        return ()
    if isinstance(held, list | tuple) and not hasattr(held, "_fields"):
        return enumerate(held) if len(held) <= _MOST else ()
    named = dict.items(held) if isinstance(held, dict) else _fields(held).items()
    return [(key, each) for key, each in named if type(key) is str and "." not in key]


def _fields(held: Any) -> dict[str, Any]:
    """The attributes of an object that keeps settings."""
    kind = type(held)
    if callable(held) or (kind not in _SPACES and kind.__module__.partition(".")[0] in _OTHERS):
        return {}
    if isinstance(held, tuple):
        fields: Any = held
        return dict(zip(fields._fields, fields, strict=True))
    slots = [name for base in kind.__mro__ for name in _slots(base) if hasattr(held, name)]
    return {name: getattr(held, name) for name in slots} | getattr(held, "__dict__", {})


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]


def last_name(path: str) -> str:
    """What the entry is called: of several in a list the list's name."""
    return next((part for part in reversed(path.split(".")) if not part.isdigit()), path)


def words(path: str) -> set[str]:
    """Of the entry's name."""
    return set(re.split(r"[_\d]+", last_name(path).lower()))


@functools.cache
def counts_channels(path: str) -> bool:
    """Whether the entry is called as something that counts channels."""
    return not _WORDS.isdisjoint(words(path)) and _NO_WIDTHS.isdisjoint(words(path))


def value_at(owner: Any, path: str) -> Any:
    """What stands at a path; None where nothing does."""
    for part in path.split(".") if path else ():
        owner = _entry(owner, part)
    return owner


def _entry(owner: Any, key: str) -> Any:
    if isinstance(owner, dict):
        return dict.get(owner, key)
    if isinstance(owner, list | tuple) and not hasattr(owner, "_fields"):
        return owner[int(key)] if key.isdigit() and int(key) < len(owner) else None
    return getattr(owner, key, None)


def write_(values: Iterable[tuple[nn.Module, str, int]]) -> None:
    """Give paths of modules other values.

    Containers on the way are replaced, since others may hold them too; modules that shared one share the new one where
    the same is changed for each.

    Raises:
        ModelError: a module does not let itself be changed.
    """
    changes: dict[tuple[nn.Module, str], dict[str, int]] = {}
    for module, path, value in values:
        head, _, rest = path.partition(".")
        changes.setdefault((module, head), {})[rest] = value
    made: dict[tuple[int, frozenset[tuple[str, int]]], Any] = {}
    fresh = []
    for (module, head), rests in changes.items():
        held = getattr(module, head)
        key = id(held), frozenset(rests.items())
        if key not in made:
            made[key] = held
            for rest, value in rests.items():
                made[key] = _with(made[key], rest, value)
        fresh.append((module, head, made[key]))
    for module, head, new in fresh:
        try:
            put_(module, head, new)
        except Exception as error:  # the user's class may refuse it in any way
            why = f"{type(module).__name__} does not let {head}, which counts channels, be changed ({error})"
            raise ModelError(f"{why}: make it an attribute that can be set, or keep that layer") from error


def put_(module: nn.Module, name: str, value: Any) -> None:
    """Set an integer or what holds some, where torch's own `__setattr__` would, which looks for parameters first."""
    if type(module).__setattr__ is nn.Module.__setattr__ and name in vars(module):
        vars(module)[name] = value
    else:
        setattr(module, name, value)


def can_write(held: Any, path: str, value: int) -> bool:
    """Whether what a module holds can be had with another value at a path."""
    try:
        return bool(value_at(_with(held, path, value), path) == value)
    except Exception:  # the user's classes may refuse to be copied or changed in any way
        return False


def _with(held: Any, path: str, value: int) -> Any:
    if not path:
        return value
    key, _, rest = path.partition(".")
    if isinstance(held, tuple) and hasattr(held, "_replace"):
        return held._replace(**{key: _with(getattr(held, key), rest, value)})
    if isinstance(held, list | tuple):
        entries = list(held)
        entries[int(key)] = _with(held[int(key)], rest, value)
        return type(held)(entries)
    fresh = copy.copy(held)
    if isinstance(held, dict):
        fresh[key] = _with(held[key], rest, value)
    else:
        new = _with(getattr(held, key), rest, value)
        try:
            setattr(fresh, key, new)
        except Exception:  # the class is frozen
            object.__setattr__(fresh, key, new)
    return fresh
