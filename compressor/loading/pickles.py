"""Open what torch.save wrote, without running code unless it is asked for.

A pickle is read on stand-ins (see loading.stand_ins); what it says of tensors and networks is compared with the file
before memory is spent on it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Size, Tensor, nn

from compressor import vision
from compressor.errors import CompressorError, FileError
from compressor.limits import LARGEST_GIB, check_size
from compressor.loading.archive import Record, records
from compressor.loading.forms import Ordered
from compressor.loading.networks import DEEPEST, Skeleton, UnbuiltError, build, checked, describe, dtype_named, named
from compressor.loading.stand_ins import Names, StandIn, keyed, unpickle
from compressor.text import first_line, listed, shown

_LARGEST_PICKLE = 64 << 20  # a state dict of a thousand tensors takes some 100 kB; training records come beside it

# torch.save's format before 1.6: these two numbers, the machine, the object and the keys of its storages, each as a
# pickle; then the storages, each after its number of values.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)

# Tensors may show more values than their storage has (an expanded one), up to so many in a file: 64 MiB of float32.
_MOST_REPEATED = 1 << 24

_KINDS = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _KINDS.items()}
_STORAGES["torch.storage.UntypedStorage"] = torch.uint8
_REBUILD = "torch._utils._rebuild_"  # how the names of the functions begin that make tensors

# Classes that hold the network itself, and under what name.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
_PARTS = ("_parameters", "_buffers", "_modules")


def read_pickle(path: Path, *, trust: bool = False, most_gib: float = LARGEST_GIB) -> Any:
    """What torch.save put into `path`, on the CPU, with a StoredTensor for each tensor and a StandIn for each object.

    With `trust` the file's code runs, and the objects themselves are returned.

    Raises:
        FileError: the file is damaged, of more than `most_gib`, or its pickle does what torch.save never writes.
    """
    try:
        check_size(f"{path} has", path.stat().st_size, most_gib)
        with path.open("rb") as file, one_line_errors(path):
            if trust:
                return _read_trusted(path)
            return _read_zip(file, path) if zipfile.is_zipfile(file) else _read_legacy(file, path)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} is not a pickle that can be read without running code ({first_line(error)}): save the state dict "
            "again with torch.save's defaults, or open it with --trust if you know who made it"
        ) from error
    except EOFError as error:
        raise FileError(f"{path} is cut off or damaged (its pickle has no end): copy or download it again") from error


def _read_zip(file: BinaryIO, path: Path) -> Any:
    found = records(file, path)
    contents = {}
    for name in ("data.pkl", "byteorder"):
        record = found.get(name, Record(0, 0))
        if record.size > _LARGEST_PICKLE:
            raise ValueError(f"its pickle has {record.size:,} bytes")
        contents[name] = bytearray(record.size)
        record.read_into(file, contents[name])
    _check_order(contents["byteorder"] != b"big")
    source = _Source(path)
    source.records = {name.removeprefix("data/"): each for name, each in found.items() if name.startswith("data/")}
    pickled = contents["data.pkl"]
    return unpickle(io.BytesIO(pickled), len(pickled), source.names, _Storage.of)


def _read_legacy(file: BinaryIO, path: Path) -> Any:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    source = _Source(path)
    storages: dict[str, _Storage] = {}

    def storage(place: tuple[Any, ...]) -> _Storage:
        found = _Storage.of(place)
        return storages.setdefault(found.key, found) and found

    try:
        *numbers, machine, held, keys = (unpickle(file, size, source.names, storage) for _ in range(5))
    except pickle.UnpicklingError as error:
        if "persistent_load of storage" not in str(error):
            raise
        raise FileError(
            f"{path} is a network in the format of torch before 1.6, of which only state dicts are opened: save the "
            "state dict and give --arch, or open it with --trust if you know who made it"
        ) from error
    if tuple(numbers) != _LEGACY or type(keys) is not list or len(set(keys)) < len(keys):
        raise ValueError("it does not begin as torch.save's files do")
    _check_order(machine.get("little_endian") is True)
    for key in keys:
        count = storages[key].count
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"storage {key} has another size than its tensors say")
        source.records[key] = Record(file.tell(), count * storages[key].dtype.itemsize)
        file.seek(source.records[key].size, os.SEEK_CUR)
    return held


def _check_order(little: bool) -> None:
    if not little or sys.byteorder != "little":
        raise ValueError("it was written on a machine that has its bytes in another order")


def _read_trusted(path: Path) -> Any:
    # The classes of one's own module are found where one would run one's own script.
    folders = [str(Path.cwd()), str(path.resolve().parent)]
    sys.path[:0] = folders
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise FileError(
            f"{path} needs Python code that is not here ({error}): run in the folder of that code, or save the state "
            "dict and give --arch FILE.py:build"
        ) from error
    except Exception as error:
        raise FileError(f"{path} cannot be opened ({type(error).__name__}: {first_line(error)})") from error
    finally:
        for folder in folders:
            sys.path.remove(folder)


@dataclass(frozen=True)
class _Storage:
    """A block of numbers that a pickle says is in the file."""

    key: str
    dtype: torch.dtype
    count: int
    start: int  # the first value that is meant
    shown: int  # how many of them

    @classmethod
    def of(cls, place: tuple[Any, ...]) -> _Storage:
        """What a pickle refers to: a class, a key, a device, a number of values, in old files a part of them."""
        _, kind, key, _, count, *view = place
        _, start, shown = view[0] if view and view[0] is not None else (None, 0, count)
        if type(key) is not str or not _are_sizes((count, start, shown)) or start + shown > count:
            raise ValueError("it refers to a storage of no size")
        return cls(key, _STORAGES[kind.name], count, start, shown)


@dataclass(eq=False)
class StoredTensor:
    """A tensor as a pickle describes it; it is in the file."""

    source: _Source
    place: tuple[Any, ...]  # storage, offset, size, stride
    dtype: torch.dtype | None = None  # where it is not the storage's
    trained: bool | None = None  # of a parameter
    odd: str = ""  # what it is besides a plain tensor
    _read: Tensor | None = None

    def read(self) -> Tensor:
        """Read it, once. Raises FileError where it is not in the file as the pickle says, or no plain tensor."""
        if self._read is None:
            with one_line_errors(self.source.path):
                values = self.source.values(self.place, self.dtype, self.odd)
            self._read = values if self.trained is None else nn.Parameter(values, requires_grad=self.trained)
        return self._read


@dataclass(eq=False)
class _Source:
    """A file that is read: what its pickle makes of tensors and collections, and the numbers themselves."""

    path: Path
    records: dict[str, Record] = field(default_factory=dict)  # of the storages, by key
    names: Names = field(default_factory=Names)  # what the pickle asks for
    _repeated: int = 0
    _contents: dict[str, Tensor] = field(default_factory=dict)  # bytes of storages

    def __post_init__(self) -> None:
        odd = (name for name in vars(torch._utils) if name.startswith("_rebuild_"))
        self.names.update(
            {
                **{f"torch._utils.{name}": partial(self._odd, name) for name in odd},
                **{f"{_REBUILD}{name}": partial(self._tensor, count) for name, count in _PLAIN.items()},
                **{f"{_REBUILD}parameter{more}": self._parameter for more in ("", "_with_state")},
                "torch._tensor._rebuild_from_type_v2": self._of_a_type,
                "collections.OrderedDict": Ordered,
                "builtins.set": partial(keyed, set),
                "builtins.frozenset": partial(keyed, frozenset),
                "torch.Size": Size,
            }
        )

    def _tensor(self, count: int, *arguments: Any) -> StoredTensor:
        odd = "conjugated, negated or of another kind" if any(arguments[count:]) else ""
        dtype = dtype_named(arguments[6].name) if count == _PLAIN["tensor_v3"] else None
        return StoredTensor(self, arguments[:4], dtype, odd=odd)

    def _odd(self, name: str, *_: Any) -> StoredTensor:
        return StoredTensor(self, (None,) * 4, odd=f"sparse, quantized or without values ({name})")

    def _parameter(self, tensor: Any, trained: Any, *_: Any) -> StoredTensor:
        parameter: StoredTensor = replace(tensor, trained=trained is True)
        return parameter

    def _of_a_type(self, function: Any, _: Any, arguments: Any, *__: Any) -> Any:
        return function(*arguments)

    def values(self, place: tuple[Any, ...], dtype: torch.dtype | None, odd: str) -> Tensor:
        """The tensor that a pickle describes. Raises ValueError, TypeError or LookupError where it is not there."""
        if odd:
            raise FileError(f"{self.path} holds a tensor that is {odd}: save it as a plain one")
        storage, offset, size, stride = place
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        values = self._bytes(storage).view(dtype or storage.dtype)
        if not _are_sizes((offset,)) or not _are_sizes(size) or not _are_sizes(stride):
            raise ValueError("a tensor has a size that is no size")
        count = math.prod(size)
        reach = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else 0
        self._repeated += count if count > len(values) else 0
        if reach > len(values) or self._repeated > _MOST_REPEATED:
            raise ValueError(f"a tensor of {count:,} values is made of a storage of {len(values):,}")
        return values.as_strided(size, stride, offset)

    def _bytes(self, storage: _Storage) -> Tensor:
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


_PLAIN = {"tensor": 4, "tensor_v2": 6, "tensor_v3": 7}  # functions that make a plain tensor, by how many arguments


def is_network(value: Any) -> bool:
    """Whether it is what stands for a network of any class."""
    return isinstance(value, StandIn) and isinstance(value.state, dict) and value.state.keys() >= set(_PARTS)


def entries(value: Any) -> dict[Any, Any] | None:
    """What is in a dict, or in what stands for one of somebody's class; None for anything else."""
    if isinstance(value, StandIn):
        return value.entries or None
    return dict(value) if isinstance(value, Mapping) else None


def skeleton(network: StandIn, path: Path) -> Skeleton:
    """The layers and tensors of a stored network of any class, or of the one in what it is wrapped in.

    Raises FileError where it is damaged.
    """
    known: dict[int, Skeleton | None] = {}  # by identity; None while inside it

    def made(stored: Any, depth: int) -> Skeleton:
        if not is_network(stored) or depth > DEEPEST:
            raise ValueError("its layers are nested too deeply" if depth > DEEPEST else "a layer is none")
        if id(stored) not in known:
            known[id(stored)] = None
            layer = Skeleton(stored.name, stored.state, _stored_form)
            for part in _PARTS:
                for key, each in Ordered(stored.state[part].items()).items():
                    if each is not None and part == "_modules":
                        each = made(each, depth + 1)
                    elif each is not None:
                        each = each.read() if part == "_parameters" else each.read().detach()
                    getattr(layer, part)[key] = each
            layer._non_persistent_buffers_set.update(stored.state.get("_non_persistent_buffers_set") or ())
            known[id(stored)] = layer
        found = known[id(stored)]
        if found is None:
            raise ValueError("a layer contains itself")
        return found

    with one_line_errors(path):
        for _ in range(DEEPEST):
            inner = _WRAPPERS.get(network.name)
            if inner is None:
                break
            network = network.state["_modules"][inner]
        return checked(made(network, 0))  # type: ignore[return-value]


def rebuilt(network: StandIn, path: Path) -> nn.Module:
    """A stored network itself, where all its classes are published ones. Raises FileError for any other."""
    layers = skeleton(network, path)
    try:
        return build(*describe(layers))
    except UnbuiltError as error:
        asked = [name for name, each in sorted(network.beside.items()) if isinstance(each, type) and not _known(name)]
        raise FileError(
            f"{path} holds a network that is not built without its code: {shown(str(error))}"
            f"{f'; it asks for {listed(asked)}' if asked else ''}. Give --arch {_architecture(layers)}, or open it "
            "with --trust if you know who made it"
        ) from error


def _stored_form(value: Any, where: str) -> Any:
    """The form of what a pickle has in an attribute of a layer; None where no file may hold it."""
    if isinstance(value, type) and issubclass(value, StandIn):
        return {"$name": value.name}
    if not isinstance(value, StandIn):
        return None
    if value.name == "functools.partial" and not value.state[1]:
        return {"$partial": [value.state[0].name, value.state[2]]}
    if len(value.arguments) == 1:
        return {"$member": [value.name, value.arguments[0]]}
    raise UnbuiltError(f"{where} is a {value.name}, which is not a plain value")


def _architecture(layers: Skeleton) -> str:
    """What --arch has to say, where the file tells."""
    published = layers.held.get("pretrained_cfg", layers.held.get("default_cfg"))
    name = published.get("architecture") if isinstance(published, dict) else None
    if type(name) is str and name.isidentifier():
        return f"timm:{name}"
    module_name = layers.name.rpartition(".")[0]
    names = [each for each in vision.classifiers() if vision.models.get_model_builder(each).__module__ == module_name]
    sizes = {key: tensor.shape for key, tensor in layers.state_dict().items()} if names else {}
    alike: dict[str, int] = {}
    for name in names:
        with suppress(CompressorError), torch.device("meta"):
            state = vision.build(name).state_dict()
            if state.keys() == sizes.keys():
                alike[name] = sum(tensor.shape == sizes[key] for key, tensor in state.items())
    return f"torchvision:{max(alike, key=alike.__getitem__)}" if alike else "FILE.py:FUNCTION"


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """What a damaged pickle makes the code fail with that follows its description."""
    try:
        yield
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


def _known(name: str) -> bool:
    """Whether it is a storage, a collection or a class of published layers."""
    if name in _STORAGES or name in ("collections.OrderedDict", "torch.Size"):
        return True
    try:
        return named(name) is not None
    except UnbuiltError:
        return False


def _are_sizes(values: Any) -> bool:
    plain = type(values) in (tuple, list, Size) and all(type(each) is int and 0 <= each < 2**62 for each in values)
    return plain and len(values) <= 64
