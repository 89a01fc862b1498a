"""Follow a pickle's instructions without carrying them out: the names it uses, what it would call and with what.

torch's restricted reader decides by its name what a pickle may call, not with what: `bytearray(10**12)`, a tensor over
a storage that is not in the file, or a layer of a million channels are allowed calls. Followed here with values that
are only described (`Storage`, `Made`), a pickle passes that does what torch.save writes and nothing else.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, BinaryIO

import torch

# Names of Python 2, which pickle's protocol 2 still writes.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}

# What follows is a second or two of work; a network of a thousand layers has 50,000.
_MOST_INSTRUCTIONS = 1_000_000

# A tensor may show more values than its storage has (an expanded one), up to so many in a file: 64 MiB of float32.
_MOST_REPEATED = 1 << 24

_TENSOR, _PARAMETER = "torch.Tensor", "torch.nn.parameter.Parameter"


class Objection(Exception):
    """What a pickle does that torch.save never writes, in a few words."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers that lies in the file."""

    count: int
    itemsize: int


@dataclass(frozen=True)
class Made:
    """A container, or what calling this name would give."""

    of: str


class Kind(Enum):
    """Classes that a pickle may make bare instances of."""

    NETWORK = "a layer"  # without arguments: its sizes come with its state
    RECORD = "no weight"  # takes anything and keeps nothing


@dataclass
class Survey:
    """What following a file's pickles has shown."""

    names: set[str] = field(default_factory=set)
    objection: str | None = None  # the first


@dataclass
class Reader:
    """Follows pickles one after the other; `survey` says what was seen."""

    sizes: Mapping[str, int] | None  # bytes by record, of a zip file; None for the old format
    file_bytes: int
    kind_of: Callable[[str], Kind | None]  # what a name that is no function stands for; None where it is not allowed
    survey: Survey = field(default_factory=Survey)
    _stack: list[Any] = field(default_factory=list)
    _marks: list[list[Any]] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)
    _strings: list[str] = field(default_factory=lambda: ["?", "?"])
    _storages: dict[str, Storage] = field(default_factory=dict)
    _steps: int = 0
    _repeated: int = 0

    def follow(self, stream: BinaryIO) -> None:
        """Follow one pickle; the stream stands behind it afterwards.

        Raises whatever pickletools raises for a damaged one.
        """
        self._stack, self._marks, self._memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(stream):
            self._steps += 1
            if self._steps > _MOST_INSTRUCTIONS:
                self._object(f"it has more than {_MOST_INSTRUCTIONS:,} instructions")
                return
            self._note_names(opcode.name, argument)
            if self.survey.objection is not None:
                continue  # only the names are still wanted
            try:
                self._step(opcode.name, argument)
            except Objection as error:
                self._object(str(error))
            except (IndexError, KeyError, TypeError, ValueError, OverflowError):
                self._object(f"its instruction {opcode.name} makes no sense there")

    def _object(self, text: str) -> None:
        self.survey.objection = self.survey.objection or text

    def _note_names(self, opcode: str, argument: Any) -> None:
        """Collect every name, also by instructions of protocols that are refused, so that the refusal can list them."""
        if opcode in ("GLOBAL", "INST"):
            self.survey.names.add(_dotted(*str(argument).split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            self.survey.names.add(_dotted(self._strings[-2], self._strings[-1]))
        elif opcode in ("MEMOIZE", "PUT"):
            self._memo[len(self._memo) if argument is None else argument] = self._strings[-1]
        elif opcode == "GET" or (self.survey.objection is not None and opcode.endswith("GET")):
            self._strings.append(str(self._memo.get(argument, "?")))
        elif isinstance(argument, str):
            self._strings.append(argument)

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _CONSTANTS:
            stack.append(argument)
        elif opcode in _FIXED:
            stack.append(_FIXED[opcode])
        elif opcode == "GLOBAL":
            stack.append(Name(_dotted(*str(argument).split(" ", 1))))
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif opcode in ("TUPLE", "APPENDS", "SETITEMS"):
            items, self._stack = stack, self._marks.pop()
            if opcode == "TUPLE":
                self._stack.append(tuple(items))
            else:
                self._fill()
        elif opcode in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[opcode])]
            stack.append(tuple(reversed(items)))
        elif opcode in ("APPEND", "SETITEM"):
            del stack[-1 if opcode == "APPEND" else -2 :]
            self._fill()
        elif opcode in ("REDUCE", "NEWOBJ", "BUILD"):
            second, first = stack.pop(), stack.pop()
            stack.append({"REDUCE": self._called, "NEWOBJ": self._new, "BUILD": self._built}[opcode](first, second))
        elif opcode == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif opcode not in ("PROTO", "STOP"):
            raise Objection(f"its instruction {opcode} is none of torch.save's")

    def _fill(self) -> None:
        if not isinstance(self._stack[-1], Made):
            raise Objection("it fills something that is no container")

    def _called(self, function: Any, arguments: Any) -> Any:
        name = function.text if isinstance(function, Name) else "?"
        kind = self.kind_of(name)
        if kind is Kind.NETWORK:
            raise Objection(f"it makes a {name} anew, with sizes of its own")
        if kind is Kind.RECORD:
            return Made(name)
        if name == "torch._tensor._rebuild_from_type_v2":
            inner, subclass, values, _ = arguments
            self._called(inner, values)
            if subclass.text not in (_TENSOR, _PARAMETER):
                raise Objection(f"it makes a {subclass.text} of a tensor")
            return Made(subclass.text)
        if name in _TENSORS:
            self._check_tensor(name, arguments)
            return Made(_TENSOR)
        if name not in _CALLS or not _CALLS[name](arguments):
            raise Objection(f"it calls {name} in a way of its own")
        return Made(_PARAMETER if name in _PARAMETERS else name)

    def _new(self, made: Any, arguments: Any) -> Made:
        name = made.text if isinstance(made, Name) else "?"
        kind = self.kind_of(name)
        bare = kind is Kind.RECORD or (kind is Kind.NETWORK and arguments == ())
        if not bare and not (name == _PARAMETER and all(each in _MADE_TENSORS for each in arguments)):
            raise Objection(f"it makes a {name} in a way of its own")
        return Made(name)

    def _built(self, made: Any, _: Any) -> Made:
        if not isinstance(made, Made) or (self.kind_of(made.of) is None and made.of not in _STATEFUL):
            raise Objection("it puts a state into something that has none")
        return made

    def _storage(self, place: Any) -> Storage:
        """A storage that the pickle refers to, which has to be in the file."""
        kind, described, key, _, count, *view = place
        itemsize = _itemsize(described.text)
        storage = Storage(count, itemsize)
        if kind not in ("storage", b"storage") or type(count) is not int or count < 0 or type(key) is not str:
            raise Objection("it refers to something that is no storage")
        if self._storages.setdefault(key, storage) != storage:
            raise Objection(f"it has two opinions on the size of storage {key}")
        held = self.file_bytes if self.sizes is None else self.sizes.get(f"data/{key}")
        fits = held is not None and (count * itemsize <= held if self.sizes is None else count * itemsize == held)
        if not fits:
            raise Objection(f"storage {key} should have {count * itemsize:,} bytes, the file has {held or 'none'}")
        if view and view[0] is not None:
            _, offset, size = view[0]
            if not (_are_sizes((offset, size)) and offset + size <= count):
                raise Objection(f"it shows more of storage {key} than there is")
            return Storage(size, itemsize)
        return storage

    def _check_tensor(self, name: str, arguments: Any) -> None:
        storage, offset, size, stride, *more = arguments
        count = storage.count
        if name.endswith("_v3"):
            count = count * storage.itemsize // _itemsize(more[2].text)
        if not (_are_sizes((offset,)) and _are_sizes(size) and _are_sizes(stride) and len(size) == len(stride)):
            raise Objection("it makes a tensor of no known form")
        shown = math.prod(size)
        reach = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride)) if shown else 0
        if reach > count:
            raise Objection(f"a tensor of shape {_shape(size)} reaches beyond its storage of {count:,} values")
        self._repeated += shown if shown > count else 0
        if self._repeated > _MOST_REPEATED:
            raise Objection(f"a tensor of shape {_shape(size)} is made of a storage of {count:,} values")


def _dotted(module: str, name: str) -> str:
    return f"{_RENAMED.get(module, module)}.{name}"


def _itemsize(name: str) -> int:
    """Bytes of one value of a storage class or type of numbers, by its name."""
    from torch._weights_only_unpickler import _get_allowed_globals

    found = _get_allowed_globals()[name]
    if found is torch.UntypedStorage:
        return 1
    kind = found if isinstance(found, torch.dtype) else found.dtype
    return int(torch._utils._element_size(kind))


def _are_sizes(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) <= 64
        and all(type(each) is int and 0 <= each < 2**62 for each in values)
    )


def _shape(size: tuple[int, ...]) -> str:
    shown = "x".join(str(each) for each in size[:6])
    return shown + ("x..." if len(size) > 6 else "") or "()"


def _is_text(arguments: Any) -> bool:
    """`("...", "latin1")`, which is how protocol 2 writes bytes, or bytes alone."""
    return (
        isinstance(arguments, tuple)
        and 1 <= len(arguments) <= 2
        and isinstance(arguments[0], (str, bytes))
        and all(each in ("latin1", "latin-1") for each in arguments[1:])
    )


def _is_one_container(arguments: Any) -> bool:
    return arguments == () or (len(arguments) == 1 and isinstance(arguments[0], (Made, tuple)))


def _are_numbers(arguments: Any) -> bool:
    return all(isinstance(each, (int, float)) for each in arguments)


def _is_parameter(arguments: Any) -> bool:
    return arguments[0] in _MADE_TENSORS and isinstance(arguments[1], bool)


def _is_meta(arguments: Any) -> bool:
    return isinstance(arguments[0], Name) and _are_sizes(arguments[1]) and _are_sizes(arguments[2])


_MADE_TENSORS = (Made(_TENSOR), Made(_PARAMETER))
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_STATEFUL = ("collections.OrderedDict", _PARAMETER)

# Function -> whether it may be called with these arguments.
_CALLS: dict[str, Callable[[Any], bool]] = {
    "collections.OrderedDict": _is_one_container,
    "collections.Counter": _is_one_container,
    "builtins.set": _is_one_container,
    "builtins.complex": _are_numbers,
    "builtins.bytearray": _is_text,
    "_codecs.encode": _is_text,
    "torch.Size": lambda arguments: len(arguments) == 1 and _are_sizes(arguments[0]),
    "torch.device": lambda arguments: all(isinstance(each, (str, int)) for each in arguments),
    "torch.serialization._get_layout": lambda arguments: all(isinstance(each, str) for each in arguments),
    "torch._utils._rebuild_meta_tensor_no_storage": _is_meta,
    **dict.fromkeys(_PARAMETERS, _is_parameter),
}

# Instructions that put their argument on the stack, or always the same thing.
_CONSTANTS = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
_FIXED: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "EMPTY_LIST": Made("builtins.list"),
    "EMPTY_DICT": Made("builtins.dict"),
    "EMPTY_SET": Made("builtins.set"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
