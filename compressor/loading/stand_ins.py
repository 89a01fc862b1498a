"""Read a pickle on stand-ins: torch's weights-only unpickler, and nothing that the pickle names.

Every class and function that a file asks for, torch's own among them, is read as an empty class that keeps what it is
given. Nothing is imported, called or allocated because a file says so; what the stand-ins mean is decided afterwards.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, BinaryIO

# A network of a thousand layers has 50,000 instructions of at most two reads each.
_MOST_READS = 2_000_000
_MOST_NAMES = 300
_LONGEST_NAME = 1000
_MOST_ARGUMENTS = 32  # torch's functions take nine at most
_MOST_ODD_KEYS = 2000  # keys of one dict that are not texts or numbers; somebody may have chosen them to collide


def _torchs_unpickler() -> Any:
    """A copy of torch's module, whose lists of what is allowed are ours to replace."""
    spec = importlib.util.find_spec("torch._weights_only_unpickler")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._get_user_allowed_globals = dict  # type: ignore[attr-defined]
    return module


_torch = _torchs_unpickler()

Place = tuple[Any, ...]  # what a pickle says of a storage: its class, its key, its device, its number of values


class StandIn:
    """What a class or function is read as; an instance is what the pickle makes with it."""

    __slots__ = ("arguments", "entries", "state")
    name = ""  # "module.name", of each class derived
    beside: Names  # all that the same file asks for

    arguments: tuple[Any, ...]
    entries: dict[Any, Any]  # what is put into it as into a dict
    state: Any

    def __new__(cls, *arguments: Any) -> StandIn:
        if len(arguments) > _MOST_ARGUMENTS:
            raise ValueError(f"it calls {cls.name} with {len(arguments):,} arguments")
        made = super().__new__(cls)
        made.arguments, made.entries, made.state = arguments, {}, None
        return made

    def __repr__(self) -> str:
        return f"{self.name}(...)"

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


class Names(dict[str, Any]):
    """What each name that a file asks for is read as: one of a few functions of ours, else a stand-in."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __missing__(self, name: str) -> type[StandIn]:
        if len(self) >= _MOST_NAMES:
            raise ValueError(f"it asks for more than {_MOST_NAMES} classes and functions")
        made = type("StandIn", (StandIn,), {"__slots__": (), "name": name, "beside": self})
        self[name] = made
        return made


def unpickle(file: BinaryIO, size: int, names: Names, storage: Callable[[Place], Any]) -> Any:
    """Read one pickle; the file stands behind it afterwards.

    `size` bounds what is read at once, `names` collects the stand-ins, `storage` gives what stands for a block of
    numbers. Raises whatever torch's unpickler raises for a damaged pickle, UnpicklingError for other instructions than
    torch.save's.
    """
    reader = _Unpickler(_Metered(file, size), encoding="utf-8")
    reader.persistent_load = storage
    _torch._get_allowed_globals = lambda: names
    with warnings.catch_warnings():
        # A pickle of another protocol is read all the same where its instructions are known.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return reader.load()


class _Metered:
    """The file as the unpickler reads it, with a limit on how often and how much."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._left = file, size, _MOST_READS

    def read(self, count: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has more than {_MOST_READS // 2:,} instructions")
        return self._file.read(min(count, self._size))

    def readline(self) -> bytes:
        line = self._file.readline(_LONGEST_NAME)
        if not line.endswith(b"\n"):
            raise ValueError("it has a name without an end")
        return line


class _Stack(list[Any]):
    """The unpickler's stack, which remembers what was last taken off it."""

    last: Any = None

    def pop(self, *place: Any) -> Any:
        self.last = super().pop(*place)
        return self.last


class _Unpickler(_torch.Unpickler):  # type: ignore[misc,name-defined]
    """torch's, which looks at the keys of a dict before they are hashed: that can take for ever, or end the process."""

    @property
    def stack(self) -> list[Any]:
        return self._stack

    @stack.setter
    def stack(self, values: list[Any]) -> None:
        self._stack = values if type(values) is _Stack else _Stack(values)

    def pop_mark(self) -> list[Any]:
        items: list[Any] = super().pop_mark()
        self._items = items
        return items

    def _check_set_item_target(self, opcode: str) -> None:
        target = self.stack[-1]
        if not isinstance(target, (dict, StandIn)):
            raise UnpicklingError(f"Can only {opcode} for dicts, but got {type(target)}")
        keys = [self._stack.last] if opcode == "SETITEM" else self._items[::2]
        _check_keys(keys, len(target.entries if isinstance(target, StandIn) else target))


def keyed(kind: type, values: Any = ()) -> Any:
    """A set of a kind, of what may be the keys of a dict."""
    _check_keys(list(values), 0)
    return kind(values)


def _check_keys(keys: list[Any], held: int) -> None:
    odd = [key for key in keys if not (type(key) is str or (type(key) is int and abs(key) < 2**63))]
    if odd and (held + len(odd) > _MOST_ODD_KEYS or not all(_is_key(key) for key in odd)):
        raise UnpicklingError(f"a {type(odd[0]).__name__} is the key of a dict")


def _is_key(key: Any) -> bool:
    if type(key) is tuple:
        return len(key) <= 8 and not any(type(each) is tuple for each in key) and all(_is_key(each) for each in key)
    return key is None or type(key) in (str, bytes, bool, float) or (type(key) is int and abs(key) < 2**63)
