"""Read a pickle on stand-ins: torch's weights-only unpickler, and nothing that the pickle names.

Every class and function that a file asks for, torch's own among them, is read as an empty class that keeps what it is
given. Nothing is imported, called or allocated because a file says so; what the stand-ins mean is decided afterwards.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, BinaryIO

from torch import Size

# A network of a thousand layers has 50,000 instructions of at most two reads each.
_MOST_READS = 2_000_000
_LARGEST_READ = 64 << 20  # bytes of a text or a number; no pickle of a state dict is as large as a whole
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


class Ordered(dict[Any, Any]):
    """What every dict of a pickle is read as. Nothing of it can be replaced.

    Its keys are looked at before they are hashed, which can take for ever, or end the process.
    """

    __slots__ = ("_odd",)
    _odd: int

    def __new__(cls, *_: Any) -> "Ordered":
        made = super().__new__(cls)
        made._odd = 0
        return made

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for key, value in pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str and not _is_number(key):
            self._odd += 1
            if self._odd > _MOST_ODD_KEYS or not _is_key(key):
                raise UnpicklingError(f"a {type(key).__name__} is the key of a dict")
        super().__setitem__(key, value)

    def __setstate__(self, state: object) -> None:
        """Attributes, such as a state dict's `_metadata`, are left out."""


def _is_number(key: Any) -> bool:
    return type(key) is int and abs(key) < 2**63


def _is_key(key: Any) -> bool:
    if type(key) is tuple:
        return len(key) <= 8 and not any(type(each) is tuple for each in key) and all(_is_key(each) for each in key)
    return key is None or type(key) in (str, bytes, bool, float) or _is_number(key)


class StandIn:
    """What a class or function is read as; an instance is what the pickle makes with it."""

    __slots__ = ("arguments", "entries", "state")
    name = ""  # "module.name", of each class derived
    beside: Any  # the Names of its file

    arguments: tuple[Any, ...]
    entries: Ordered  # what is put into it as into a dict
    state: Any

    def __new__(cls, *arguments: Any) -> "StandIn":
        if len(arguments) > _MOST_ARGUMENTS:
            raise ValueError(f"it calls {cls.name} with {len(arguments):,} arguments")
        made = super().__new__(cls)
        made.arguments, made.entries, made.state = arguments, Ordered(), None
        return made

    def __repr__(self) -> str:
        return f"{self.name}(...)"

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


class Names(dict[str, Any]):
    """What each name that a file asks for is read as: a collection of ours, else a stand-in."""

    def __init__(self) -> None:
        super().__init__(
            {
                "collections.OrderedDict": Ordered,
                "builtins.set": lambda values=(): set(Ordered.fromkeys(values)),
                "builtins.frozenset": lambda values=(): frozenset(Ordered.fromkeys(values)),
                "torch.Size": Size,
            }
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __missing__(self, name: str) -> type[StandIn]:
        if len(self) >= _MOST_NAMES:
            raise ValueError(f"it asks for more than {_MOST_NAMES} classes and functions")
        made = type("StandIn", (StandIn,), {"__slots__": (), "name": name, "beside": self})
        self[name] = made
        return made


def unpickle(file: BinaryIO, names: Names, storage: Callable[[tuple[Any, ...]], Any]) -> Any:
    """Read one pickle; the file stands behind it afterwards.

    `names` collects the stand-ins, `storage` gives what stands for a block of numbers, of which the pickle says the
    class, the key, the device and the number of values. Raises whatever torch's unpickler raises for a damaged pickle,
    UnpicklingError for other instructions than torch.save's.
    """
    reader = _Unpickler(_Metered(file), encoding="utf-8")
    reader.persistent_load = storage
    _torch._get_allowed_globals = lambda: names
    with warnings.catch_warnings():
        # A pickle of another protocol is read all the same where its instructions are known.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return reader.load()


class _Metered:
    """The file as the unpickler reads it, with a limit on how often and how much."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MOST_READS

    def read(self, count: int) -> bytes:
        self._left -= 1
        if self._left < 0 or count > _LARGEST_READ:
            raise ValueError(f"it has more than {_MOST_READS // 2:,} instructions, or a very long one")
        content = self._file.read(count)
        if len(content) < count:
            raise ValueError("its pickle has no end")
        return content

    def readline(self) -> bytes:
        line = self._file.readline(_LONGEST_NAME)
        if not line.endswith(b"\n"):
            raise ValueError("it has a name without an end")
        return line


class _Stack(list[Any]):
    """The unpickler's stack, on which each dict is one of ours."""

    def append(self, value: Any) -> None:
        super().append(Ordered() if type(value) is dict else value)


class _Unpickler(_torch.Unpickler):  # type: ignore[misc,name-defined]
    """torch's, which puts what it makes on our stack and lets stand-ins have entries."""

    @property
    def stack(self) -> list[Any]:
        return self._stack

    @stack.setter
    def stack(self, values: list[Any]) -> None:
        self._stack = values if type(values) is _Stack else _Stack(values)

    def _check_set_item_target(self, opcode: str) -> None:
        if not isinstance(self.stack[-1], Ordered | StandIn):
            raise UnpicklingError(f"Can only {opcode} for dicts, but got {type(self.stack[-1])}")
