"""Integers that a module keeps, as attributes or in the lists, dicts and namespaces that these hold.

A path names one: "groups", "kernel_size.0", "feature_info.1.num_chs".
"""

import argparse
import collections
import copy
import re
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

_OWN = frozenset(vars(nn.Module()))
_SEQUENCES, _MAPPINGS = (list, tuple), (dict, collections.OrderedDict)
_SPACES = (types.SimpleNamespace, argparse.Namespace)
_DEPTH, _MOST = 3, 1000  # containers in each other, entries of one; more is data
_WORDS = frozenset(
    """feature features channel channels plane planes inplanes outplanes filter filters width widths hidden embed dim
    dims chs chan chans ch nf inp oup""".split()  # noqa: SIM905 - a list of words
)


def integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Every integer with its path; what `torch.nn.Module` itself keeps is left out."""
    for name, held in vars(module).items():
        if type(held) is int:
            yield name, held
        elif name not in _OWN and type(held) in (*_SEQUENCES, *_MAPPINGS, *_SPACES):
            yield from _below(name, held, _DEPTH)


def _below(path: str, held: Any, depth: int) -> Iterator[tuple[str, int]]:
    if type(held) is int:
        yield path, held
    elif depth:
        for key, each in _entries(held):
            yield from _below(f"{path}.{key}", each, depth - 1)


def _entries(held: Any) -> Iterable[tuple[Any, Any]]:
    kind = type(held)
    if kind in _SEQUENCES:
        return enumerate(held) if len(held) <= _MOST else ()
    named = held if kind in _MAPPINGS else vars(held) if kind in _SPACES else {}
    return [(key, each) for key, each in named.items() if type(key) is str and "." not in key]


def last_name(path: str) -> str:
    """What the entry is called: of several in a list the list's name."""
    return next((part for part in reversed(path.split(".")) if not part.isdigit()), path)


def words(path: str) -> set[str]:
    """Of the entry's name."""
    return set(re.split(r"[_\d]+", last_name(path).lower()))


def counts_channels(path: str) -> bool:
    """Whether the entry is called as something that counts channels."""
    return not _WORDS.isdisjoint(words(path))


def value_at(owner: Any, path: str) -> Any:
    """What stands at a path; None where nothing does."""
    for part in path.split("."):
        owner = _entry(owner, part)
    return owner


def _entry(owner: Any, key: str) -> Any:
    if isinstance(owner, dict):
        return owner.get(key)
    if isinstance(owner, list | tuple):
        return owner[int(key)] if key.isdigit() and int(key) < len(owner) else None
    return getattr(owner, key, None)


def write_at_(module: nn.Module, path: str, value: int) -> None:
    """Give a path another value; containers on the way are replaced, since others may hold them too."""
    head, _, rest = path.partition(".")
    setattr(module, head, _with(getattr(module, head), rest, value))


def _with(held: Any, path: str, value: int) -> Any:
    if not path:
        return value
    key, _, rest = path.partition(".")
    if isinstance(held, list | tuple):
        entries = list(held)
        entries[int(key)] = _with(held[int(key)], rest, value)
        return type(held)(entries)
    fresh = copy.copy(held)
    if isinstance(held, dict):
        fresh[key] = _with(held[key], rest, value)
    else:
        setattr(fresh, key, _with(getattr(held, key), rest, value))
    return fresh
