"""What a pickle says of tensors and networks, compared with the file before memory is spent on it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor import vision
from compressor.errors import CompressorError, FileError
from compressor.loading.archive import Record
from compressor.loading.stand_ins import Names, StandIn
from compressor.loading.tree import (
    DEEPEST,
    TreeError,
    assemble,
    attributes_of,
    bound,
    checked,
    dtype_named,
    member,
    named,
    network_class,
)
from compressor.text import first_line, listed, shown

# Tensors may show more values than their storage has (an expanded one), up to so many in a file: 64 MiB of float32.
_MOST_REPEATED = 1 << 24
_MOST_LAYERS = 100_000
_MOST_VALUES, _DEEPEST_VALUE = 1_000_000, 20  # of attributes, counting one that is there twice twice

_KINDS = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _KINDS.items()}
_STORAGES["torch.storage.UntypedStorage"] = torch.uint8
_REBUILD = "torch._utils._rebuild_"
_TENSORS = {f"{_REBUILD}tensor": 4, f"{_REBUILD}tensor_v2": 6, f"{_REBUILD}tensor_v3": 7}  # arguments of a plain one
_PARAMETERS = (f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state")
_OF_A_TYPE = "torch._tensor._rebuild_from_type_v2"
_DICT = "collections.OrderedDict"
_COLLECTIONS: dict[str, Any] = {"builtins.set": set, "builtins.frozenset": frozenset, "torch.Size": torch.Size}
_HARMLESS = frozenset({*_STORAGES, *_TENSORS, *_PARAMETERS, _OF_A_TYPE, _DICT, *_COLLECTIONS})

# Classes that hold the network itself, and under what name.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}


@dataclass(frozen=True)
class Storage:
    """A block of numbers that a pickle says is in the file."""

    key: str
    dtype: torch.dtype
    count: int
    start: int  # the first value that is meant
    shown: int  # how many of them

    @classmethod
    def of(cls, place: tuple[Any, ...]) -> Storage:
        """What a pickle refers to: a class, a key, a device, a number of values, in old files a part of them."""
        _, kind, key, _, count, *view = place
        _, start, shown = view[0] if view and view[0] is not None else (None, 0, count)
        if type(key) is not str or not _are_sizes((count, start, shown)) or start + shown > count:
            raise ValueError("it refers to a storage of no size")
        return cls(key, _STORAGES[kind.name], count, start, shown)


@dataclass
class Source:
    """A file that is read, with what was read of it."""

    path: Path
    records: dict[str, Record]  # of the storages, by key
    names: Names = field(default_factory=Names)  # what the pickle asks for
    _repeated: int = 0
    _contents: dict[str, Tensor] = field(default_factory=dict)  # bytes of storages
    _tensors: dict[int, Tensor] = field(default_factory=dict)  # by the identity of what describes them

    def asked(self) -> list[str]:
        """The names that the pickle asks for and that are neither torch's tensors nor published layers."""
        return sorted(name for name in self.names if name not in _HARMLESS and not _is_published(name))

    def tensor(self, stored: Any) -> Tensor:
        """The tensor that a stand-in describes. Raises ValueError, TypeError or LookupError where it is not there."""
        if id(stored) not in self._tensors:
            self._tensors[id(stored)] = self._read(stored)
        return self._tensors[id(stored)]

    def _read(self, stored: StandIn) -> Tensor:
        arguments = stored.arguments
        if stored.name in _PARAMETERS:
            return nn.Parameter(self.tensor(arguments[0]), requires_grad=arguments[1] is True)
        if stored.name == _OF_A_TYPE:
            return self._read(_made(arguments[0], arguments[2]))
        if stored.name not in _TENSORS:
            kind = shown(stored.name)
            raise FileError(f"{self.path} holds a tensor that is sparse, quantized or without values ({kind})")
        storage, offset, size, stride = arguments[:4]
        if not isinstance(storage, Storage) or any(arguments[_TENSORS[stored.name] :]):
            raise ValueError("a tensor is not a plain one (conjugated, negated or of another kind)")
        dtype = dtype_named(arguments[6].name) if stored.name.endswith("_v3") else storage.dtype
        values = self._values(storage).view(dtype)
        size, stride = (each.arguments[0] if isinstance(each, StandIn) else each for each in (size, stride))
        if not _are_sizes((offset,)) or not _are_sizes(size) or not _are_sizes(stride):
            raise ValueError("a tensor has a size that is no size")
        count = math.prod(size)
        reach = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else 0
        self._repeated += count if count > len(values) else 0
        if reach > len(values) or self._repeated > _MOST_REPEATED:
            raise ValueError(f"a tensor of {count:,} values is made of a storage of {len(values):,}")
        return values.as_strided(size, stride, offset)

    def _values(self, storage: Storage) -> Tensor:
        """The bytes of a storage, which has to be in the file with the size that the pickle says."""
        itemsize, record = storage.dtype.itemsize, self.records.get(storage.key)
        if record is None or record.size != storage.count * itemsize:
            held = "none" if record is None else f"{record.size:,}"
            raise ValueError(
                f"storage {storage.key} should have {storage.count * itemsize:,} bytes, the file has {held}"
            )
        if storage.key not in self._contents:
            content = torch.empty(record.size, dtype=torch.uint8)
            with self.path.open("rb") as file:
                record.read_into(file, content.numpy())
            self._contents[storage.key] = content
        return self._contents[storage.key][storage.start * itemsize : (storage.start + storage.shown) * itemsize]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    stored: StandIn
    source: Source

    def read(self) -> Tensor:
        """Read it. Raises FileError where it is not in the file as the pickle says."""
        with one_line_errors(self.source.path):
            return self.source.tensor(self.stored)


@dataclass(frozen=True)
class StoredModule:
    """A network in a file, of any class."""

    stored: StandIn
    source: Source

    def state_dict(self) -> dict[str, Tensor]:
        """Its parameters and persistent buffers. Raises FileError where it is damaged."""
        found: dict[str, Tensor] = {}
        waiting, layers = [(self.stored, "")], 0
        with one_line_errors(self.source.path):
            while waiting:
                layer, prefix = waiting.pop()
                layers += 1
                if layers > _MOST_LAYERS or prefix.count(".") > DEEPEST:
                    raise ValueError("its layers contain one another without end")
                held = entries(layer.state)
                transient = {name for name in _values_of(held.get("_non_persistent_buffers_set")) if type(name) is str}
                for key, tensor in (*entries(held["_parameters"]).items(), *entries(held["_buffers"]).items()):
                    if tensor is not None and key not in transient:
                        found[f"{prefix}{key}"] = self.source.tensor(tensor)
                inner = [(child, f"{prefix}{key}.") for key, child in entries(held["_modules"]).items()]
                waiting += [each for each in reversed(inner) if each[0] is not None]
        return found

    def build(self) -> nn.Module:
        """The network itself, where all its classes are published ones. Raises FileError for any other."""
        try:
            with one_line_errors(self.source.path):
                return checked(_Builder(self.source).layer(self.stored, "the network", 0))
        except TreeError as error:
            asked = self.source.asked()
            raise FileError(
                f"{self.source.path} holds a network that is not built without its code: {shown(str(error))}"
                f"{f'; it asks for {listed(asked)}' if asked else ''}. Give --arch {self._architecture()}, or open it "
                "with --trust if you know who made it"
            ) from error

    def _architecture(self) -> str:
        """What --arch has to say, where the file tells."""
        held = entries(self.stored.state)
        published = held.get("pretrained_cfg", held.get("default_cfg"))
        name = published.get("architecture") if type(published) is dict else None
        if type(name) is str and name.isidentifier():
            return f"timm:{name}"
        module_name = self.stored.name.rpartition(".")[0]
        names = [
            each for each in vision.classifiers() if vision.models.get_model_builder(each).__module__ == module_name
        ]
        sizes = {key: tensor.shape for key, tensor in self.state_dict().items()} if names else {}
        alike: dict[str, int] = {}
        for name in names:
            with suppress(CompressorError), torch.device("meta"):
                state = vision.build(name).state_dict()
                if state.keys() == sizes.keys():
                    alike[name] = sum(tensor.shape == sizes[key] for key, tensor in state.items())
        return f"torchvision:{max(alike, key=alike.__getitem__)}" if alike else "FILE.py:FUNCTION"


def found_in(value: Any, source: Source, levels: int = 6, seen: dict[int, Any] | None = None) -> Any:
    """What a pickle gave, so many levels deep, with plain dicts for dicts of any class and what stands for weights."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, StandIn):
        if value.name == _OF_A_TYPE or value.name.startswith(_REBUILD):
            return StoredTensor(value, source)
        if type(value.state) is dict and {"_parameters", "_buffers", "_modules"} <= value.state.keys():
            inner = _WRAPPERS.get(value.name)
            wrapped = levels and inner and entries(value.state["_modules"]).get(inner)
            return found_in(wrapped, source, levels - 1, seen) if wrapped else StoredModule(value, source)
    if levels and (type(value) is dict or (isinstance(value, StandIn) and (value.entries or value.name == _DICT))):
        found = seen[id(value)] = {}
        found.update({key: found_in(each, source, levels - 1, seen) for key, each in entries(value).items()})
        return found
    return value


def entries(value: Any) -> dict[Any, Any]:
    """What is in a dict, or in what stands for one; raises ValueError for anything else."""
    if isinstance(value, StandIn):
        pairs = value.arguments[0] if value.name == _DICT and value.arguments else ()
        if any(type(key) is not str for key, _ in pairs):
            raise ValueError("a dict has keys that are no texts")
        return {**dict(pairs), **value.entries}
    if type(value) is not dict:
        raise ValueError(f"a {type(value).__name__} stands where a dict should")
    return value


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """What a damaged pickle makes the code fail with that follows its description."""
    try:
        yield
    except TreeError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise FileError(f"{path} is cut off or damaged ({first_line(error)}): copy or download it again") from error


def _is_published(name: str) -> bool:
    try:
        return named(name) is not None
    except TreeError:
        return False


def _made(function: Any, arguments: Any) -> StandIn:
    if not (isinstance(function, type) and issubclass(function, StandIn) and type(arguments) is tuple):
        raise ValueError("a tensor is made by something that is no function")
    return function(*arguments)


def _are_sizes(values: Any) -> bool:
    plain = type(values) in (tuple, list) and all(type(each) is int and 0 <= each < 2**62 for each in values)
    return plain and len(values) <= 64


def _values_of(held: Any) -> list[Any]:
    """What is in a set, or in what stands for one."""
    return list(held.arguments[0]) if isinstance(held, StandIn) and held.arguments else []


@dataclass
class _Builder:
    """Builds layers from what stands for them."""

    source: Source
    _layers: dict[int, nn.Module | None] = field(default_factory=dict)  # by identity; None while inside it
    _values: int = 0

    def layer(self, stored: Any, path: str, depth: int) -> nn.Module:
        """A layer with those inside it; raises TreeError for what no file may hold."""
        if not isinstance(stored, StandIn) or depth > DEEPEST:
            raise TreeError(f"{path} is {'nested too deeply' if depth > DEEPEST else f'a {type(stored).__name__}'}")
        if id(stored) in self._layers:
            if (known := self._layers[id(stored)]) is None:
                raise TreeError(f"{path} contains itself")
            return known
        self._layers[id(stored)] = None
        held, kind = entries(stored.state), network_class(stored.name)
        if kind is None:
            raise TreeError(f"{path} is a {stored.name}, which is not a class of torch, torchvision or timm")
        for key, value in held.items():
            if str(key).endswith("_hooks") and value is not None and entries(value):
                raise TreeError(f"{path} comes with {key}")
        parameters, buffers, children = (entries(held[key]) for key in ("_parameters", "_buffers", "_modules"))
        names = {name for name in _values_of(held.get("_non_persistent_buffers_set")) if type(name) is str}
        made = self._layers[id(stored)] = assemble(
            stored.name,
            {key: self._value(each, f"{path}.{key}", 0) for key, each in attributes_of(held, kind).items()},
            {key: each and self._parameter(each) for key, each in parameters.items()},
            {key: each and self.source.tensor(each).detach() for key, each in buffers.items()},
            names & buffers.keys(),
            {key: each and self.layer(each, _inside(path, key), depth + 1) for key, each in children.items()},
        )
        return made

    def _parameter(self, stored: Any) -> nn.Parameter:
        tensor = self.source.tensor(stored)
        return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)

    def _value(self, value: Any, where: str, depth: int) -> Any:
        """An attribute's value."""
        self._values += 1
        if self._values > _MOST_VALUES or depth > _DEEPEST_VALUE:
            raise TreeError(f"{where} holds more values than any layer")
        kind = type(value)
        if kind in (list, tuple):
            return kind(self._value(each, where, depth + 1) for each in value)
        if kind is dict or getattr(value, "name", None) == _DICT:
            return {
                self._value(key, where, 0): self._value(each, where, depth + 1) for key, each in entries(value).items()
            }
        if value is None or kind in (bool, float, str) or (kind is int and abs(value) < 2**63):
            return value
        if isinstance(value, type) and issubclass(value, StandIn):
            return named(value.name)
        if not isinstance(value, StandIn):
            raise TreeError(f"{where} is a {kind.__name__}")
        if value.name in _COLLECTIONS:
            return _COLLECTIONS[value.name](self._value(_values_of(value), where, depth + 1))
        if value.name == "functools.partial":
            (of, arguments, keywords, _) = value.state
            if not arguments:
                return bound(of.name, entries(keywords))
        if len(value.arguments) == 1:
            return member(value.name, value.arguments[0])
        raise TreeError(f"{where} is a {value.name}, which is not a plain value")


def _inside(path: str, key: Any) -> str:
    return str(key) if path == "the network" else f"{path}.{key}"
