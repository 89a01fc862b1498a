"""Open what torch.save wrote, without running code unless it is asked for.

A pickle is read on stand-ins (see loading.stand_ins); what it says of tensors and networks is compared with the file
when they are made of it.
"""

import io
import os
import pickle
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, FileError, first_line, listed, one_line, shown
from compressor.files.limits import LARGEST_GIB, check_size
from compressor.loading.content import records
from compressor.loading.networks import OwnMethod, Skeleton, build, checked, describe
from compressor.loading.proportion import UnbuiltError, dtype_named, named
from compressor.loading.stand_ins import Names, StandIn, unpickle
from compressor.vision import door as vision

# torch.save's format before 1.6: these two numbers, the machine, the object and the keys of its storages, each as a
# pickle; then the storages, each after its number of values.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)

# Tensors may show more values than their storage has (an expanded one), up to so many in a file: 64 MiB of float32.
_MOST_REPEATED = 1 << 24
_MOST_DIMS = 64

_KINDS = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _KINDS.items()}
_STORAGES["torch.storage.UntypedStorage"] = torch.uint8

# torch's functions that make tensors; those of plain ones with their number of arguments.
_REBUILD, _OF_A_TYPE = "torch._utils._rebuild_", "torch._tensor._rebuild_from_type_v2"
_PLAIN = {"tensor": 4, "tensor_v2": 6, "tensor_v3": 7}

# Classes that hold the network itself, and under what name.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
_PARTS = ("_parameters", "_buffers", "_modules")


def read_pickle(path: Path, *, trust: bool = False, most_gib: float = LARGEST_GIB) -> Any:
    """What torch.save put into `path`, with a StandIn for each object; `tensor_of` reads those of tensors.

    With `trust` the file's code runs, and the objects themselves are returned, on the CPU.

    Raises:
        FileError: the file is damaged, of more than `most_gib`, or its pickle does what torch.save never writes.
    """
    with one_line(f"{path} is cut off or damaged ("):
        check_size(f"{path} has", path.stat().st_size, most_gib)
        if trust:
            return _read_trusted(path)
        try:
            return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        except pickle.UnpicklingError as error:
            raise FileError(
                f"{path} is not a pickle that can be read without running code ({first_line(error)}): save the state "
                "dict again with torch.save's defaults, or open it with `trust` if you know who made it"
            ) from error


def _read_zip(path: Path) -> Any:
    found = records(path)
    _check_order("byteorder" not in found or bytes(found["byteorder"].numpy()) != b"big")
    file = _File(path, {name.removeprefix("data/"): each for name, each in found.items() if name.startswith("data/")})
    return unpickle(io.BytesIO(found["data.pkl"].numpy().data), file, lambda place: place)


def _read_legacy(path: Path) -> Any:
    names, places = _File(path, {}), list[tuple[Any, ...]]()

    def storage(place: tuple[Any, ...]) -> tuple[Any, ...]:
        places.append(place)
        return place

    with path.open("rb") as file:
        try:
            *numbers, machine, held, keys = (unpickle(file, names, storage) for _ in range(5))
        except pickle.UnpicklingError as error:
            if "persistent_load of storage" not in str(error):
                raise
            raise FileError(
                f"{path} is a network in the format of torch before 1.6, of which only state dicts are opened: save "
                "the state dict and give `arch`, or open it with `trust` if you know who made it"
            ) from error
        if tuple(numbers) != _LEGACY or type(keys) is not list or any(type(key) is not str for key in keys):
            raise ValueError("it does not begin as torch.save's files do")
        _check_order(machine.get("little_endian") is True)
        counts = {key: (count, count * dtype.itemsize) for key, dtype, count in map(_storage, places)}
        for key in keys:
            names.storages[key] = _next(file, *counts[key])
    return held


def _next(file: BinaryIO, count: int, size: int) -> Tensor:
    """The next storage of a file of the old format."""
    left = os.fstat(file.fileno()).st_size - file.tell() - 8
    if int.from_bytes(file.read(8), "little") != count or size > left:
        raise ValueError("a storage has another size than its tensors say")
    content = torch.empty(size, dtype=torch.uint8)
    file.readinto(content.numpy())  # type: ignore[attr-defined]
    return content


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
            "dict and give `arch` FILE.py:build"
        ) from error
    except Exception as error:
        raise FileError(f"{path} cannot be opened ({type(error).__name__}: {first_line(error)})") from error
    finally:
        for folder in folders:
            sys.path.remove(folder)


def _storage(place: tuple[Any, ...]) -> tuple[str, torch.dtype, int]:
    """Key, type and number of values of what a pickle says of a storage: a class, a key, a device, a number."""
    _, kind, key, _, count, *view = place
    if type(key) is not str or type(count) is not int or count < 0 or any(view):
        raise ValueError("it refers to a storage of no size")
    return key, _STORAGES[kind.name], count


class _File(Names):
    """A file that is read: what its pickle asks for, and the numbers beside it."""

    def __init__(self, path: Path, storages: dict[str, Tensor]) -> None:
        super().__init__()
        self.path, self.storages = path, storages  # bytes, by key
        self._repeated = 0
        self._tensors: dict[StandIn, Tensor] = {}

    def tensor(self, held: StandIn) -> Tensor:
        """The tensor that a call of torch's stands for, made once. Raises what damaged data make this fail with."""
        if held not in self._tensors:
            self._tensors[held] = self._made(held.name.removeprefix(_REBUILD), *held.arguments)
        return self._tensors[held]

    def _made(self, name: str, *arguments: Any) -> Tensor:
        if name == _OF_A_TYPE:
            return self.tensor(arguments[0](*arguments[2]))
        if name.startswith("parameter"):
            return nn.Parameter(self.tensor(arguments[0]), requires_grad=arguments[1] is True)
        if name not in _PLAIN or any(arguments[_PLAIN[name] :]):
            what = "sparse, quantized, without values or of another kind"
            raise FileError(f"{self.path} holds a tensor that is {what} ({shown(name)}): save it as a plain one")
        place, offset, size, stride = arguments[:4]
        key, dtype, count = _storage(place)
        content = self.storages.get(key, torch.empty(0, dtype=torch.uint8))
        if len(content) != count * dtype.itemsize:
            told = f"{count * dtype.itemsize:,} bytes, the file has {len(content):,}"
            raise ValueError(f"storage {shown(key)} should have {told}")
        if len(size) > _MOST_DIMS:
            raise ValueError(f"a tensor has {len(size):,} dimensions")
        values = content.view(dtype_named(arguments[6].name) if name == "tensor_v3" else dtype)
        made = values.as_strided(size, stride, offset)  # which fails beyond the storage
        self._repeated += made.numel() if made.numel() > len(values) else 0
        if self._repeated > _MOST_REPEATED:
            raise ValueError(f"a tensor of {made.numel():,} values is made of a storage of {len(values):,}")
        return made


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor, or what stands for one of any kind."""
    return isinstance(value, Tensor) or (
        isinstance(value, StandIn) and type(value.beside) is _File and value.name.startswith((_REBUILD, _OF_A_TYPE))
    )


def tensor_of(value: Tensor | StandIn) -> Tensor:
    """The tensor itself. Raises FileError where it is not in the file as the pickle says, or no plain one."""
    if isinstance(value, Tensor):
        return value
    with one_line(f"{value.beside.path} is cut off or damaged ("):
        return value.beside.tensor(value)  # type: ignore[no-any-return]


def is_network(value: Any) -> bool:
    """Whether it is what stands for a network of any class."""
    return isinstance(value, StandIn) and isinstance(value.state, dict) and value.state.keys() >= set(_PARTS)


def skeleton(network: StandIn, path: Path) -> Skeleton:
    """The layers and tensors of a stored network of any class, or of the one in what it is wrapped in.

    Raises FileError where it is damaged.
    """
    known: dict[StandIn, Skeleton] = {}

    def made(stored: Any) -> Skeleton:
        if not is_network(stored):
            raise ValueError("a layer is none")
        if stored not in known:
            held, forward = stored.state, stored.state.get("forward")
            if isinstance(forward, StandIn) and forward.name == "builtins.getattr" and forward.arguments[0] is stored:
                held = {**held, "forward": OwnMethod(forward.arguments[1])}
            layer = Skeleton(stored.name, held, _stored_form)
            for part in _PARTS:
                for key, each in stored.state[part].items():
                    if type(key) is not str:
                        raise ValueError("a layer has a part without a name")
                    if each is not None and part == "_modules":
                        each = made(each)
                    elif each is not None:
                        each = tensor_of(each) if part == "_parameters" else tensor_of(each).detach()
                    getattr(layer, part)[key] = each
            layer._non_persistent_buffers_set.update(stored.state.get("_non_persistent_buffers_set") or ())
            known[stored] = layer
        return known[stored]

    def unwrapped(stored: Any) -> Any:
        inner = _WRAPPERS.get(stored.name)
        return stored if inner is None else unwrapped(stored.state["_modules"][inner])

    with one_line(f"{path} is cut off or damaged ("):
        return checked(made(unwrapped(network)))  # type: ignore[return-value]


def rebuilt(network: StandIn, path: Path) -> nn.Module:
    """A stored network itself, where all its classes are published ones. Raises FileError for any other."""
    layers = skeleton(network, path)
    try:
        return build(*describe(layers))
    except UnbuiltError as error:
        asked = [name for name in sorted(network.beside) if not _known(name)]
        raise FileError(
            f"{path} holds a network that is not built without its code: {shown(str(error))}"
            f"{f'; it asks for {listed(asked)}' if asked else ''}. Give `arch` {_architecture(layers)}, or open it "
            "with `trust` if you know who made it"
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


def _known(name: str) -> bool:
    """Whether it is a collection, or makes tensors or published layers."""
    if name in _STORAGES or name.startswith((_REBUILD, _OF_A_TYPE)):
        return True
    with suppress(UnbuiltError):
        return named(name) is not None
    return dict.__contains__(Names(), name)
