"""Plain values and tensors as JSON writes them, so that a file is read again without running code."""

import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Size, Tensor

from compressor.errors import ModelError, UsageError
from compressor.loading.stand_ins import Ordered

_LARGEST = 2**64  # a number in JSON, in a tensor, in an attribute
_MOST_VALUES, _DEEPEST = 10_000_000, 100  # of one form; a list that is there twice counts twice

# Collections that JSON does not have, by the name that stands for each.
_COLLECTIONS: dict[type, str] = {tuple: "$tuple", Size: "$size", set: "$set", frozenset: "$frozenset"}

Special = Callable[[Any, str], Any]  # the form of a value that is not plain, and where it is; None where it has none


def encode(value: Any, where: str, special: Special | None = None) -> Any:
    """The value as JSON holds it: itself, or a dict of one entry whose name begins with $ and says what it is.

    Lists, tuples, sets and dicts are taken with what is in them; everything else is `special`'s. `decode` gives an
    equal value of the same types. Raises TypeError for a value that has no form, and says
    `where` it is.
    """
    left = iter(range(_MOST_VALUES))

    def formed(value: Any, where: str, depth: int) -> Any:
        if next(left, None) is None or depth > _DEEPEST:
            raise TypeError(f"{where} holds more than any file")
        kind = type(value)
        if value is None or kind in (bool, str) or (kind is int and abs(value) < _LARGEST):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        if kind is list:
            return [formed(each, f"{where}.{place}", depth + 1) for place, each in enumerate(value)]
        if kind in _COLLECTIONS:
            return {_COLLECTIONS[kind]: formed(list(value), where, depth + 1)}
        if kind in (dict, OrderedDict, Ordered):
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: formed(each, f"{where}.{key}", depth + 1) for key, each in value.items()}
            pairs = value.items()
            return {"$dict": [[formed(k, where, depth + 1), formed(v, f"{where}.{k}", depth + 1)] for k, v in pairs]}
        form = None if special is None else special(value, where)
        if form is not None:
            return form
        raise TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}, which is not a plain value")

    return formed(value, where, 0)


def decode(form: Any, special: Mapping[str, Callable[[Any], Any]] | None = None) -> Any:
    """The value that `encode` made a form of; `special` reads the forms that are not of plain values, by their names.

    Raises one of ArithmeticError, LookupError, RecursionError, TypeError and ValueError for a damaged form.
    """
    if isinstance(form, list):
        return [decode(each, special) for each in form]
    if not isinstance(form, dict):
        return form
    name = next(iter(form), "")
    if not name.startswith("$"):
        return {key: decode(each, special) for key, each in form.items()}
    ((_, held),) = form.items()
    if special is not None and name in special:
        return special[name](held)
    return _READ[name](decode(held, special))


_READ: dict[str, Callable[[Any], Any]] = {
    "$float": lambda held: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[held],
    "$dict": dict,
    **{name: kind for kind, name in _COLLECTIONS.items()},
}


def number(value: Any, _: str) -> Any:
    """For `encode`: of numpy's numbers, and of members of enumerations, Python's."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind) and type(value) is not kind:
            return kind(value)
    return value.item() if getattr(value, "ndim", None) == 0 and not isinstance(value, Tensor) else None


def plain(value: Any, where: str) -> Any:
    """The same value as it will be read again; raises UsageError for one that is not plain, naming `where` it is."""
    try:
        return decode(encode(value, where, number))
    except TypeError as error:
        raise UsageError(f"{error}: only plain values can be kept") from error


def to_json(form: Any) -> str:
    """The text of a form."""
    return json.dumps(form, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> Any:
    """The form in a text; raises ValueError or RecursionError for one that `to_json` does not write."""
    if re.search(r"\\u[dD][89a-fA-F]", text):
        raise ValueError("half of a character")
    return json.loads(text, parse_int=_whole, parse_constant=_whole)


def _whole(digits: str) -> int:
    if len(digits) > 21 or abs(int(digits)) >= _LARGEST:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


@dataclass
class Packer:
    """Takes tensors out of nested plain data; one that is met twice is kept once."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # contiguous and on the CPU, by name
    _names: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _storages: set[int] = field(default_factory=set)
    _met: list[Tensor] = field(default_factory=list)  # kept, so that no other tensor gets the memory of one

    def pack(self, value: Any, where: str = "") -> Any:
        """The form of a value that is plain or a tensor, or holds such values; `unpack` reads it.

        Raises TypeError for another value, ModelError for a tensor that a file cannot hold.
        """
        return encode(value, where, self._tensor)

    def _tensor(self, tensor: Any, where: str) -> Any:
        """`{"$tensor": name}`, with the strides where the tensor is not contiguous."""
        if type(tensor) is not Tensor:
            return None
        name = where.removeprefix(".")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype in _UNHELD:
            what = "quantized" if tensor.is_quantized else f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
            raise ModelError(f"{name} is a tensor that a file cannot hold ({what})")
        tensor = tensor.detach()
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if not tensor.numel() or key not in self._names:
            while name in self.tensors:
                name += "'"
            held = tensor.cpu().contiguous()
            shared = held.untyped_storage().data_ptr() in self._storages  # with a view of other sizes
            self.tensors[name] = held.clone() if shared else held
            self._storages.add(held.untyped_storage().data_ptr())
            self._names[key] = name
            self._met.append(tensor)
        name = self._names[key]
        return {"$tensor": [name, list(tensor.stride())] if _is_permuted(tensor) else name}


def unpack(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What a Packer made a form of; a tensor that was met twice is one again.

    Raises as `decode` does, and ValueError where the form leaves a tensor out.
    """
    taken: dict[str, Tensor] = {}

    def tensor(held: Any) -> Tensor:
        name, strides = (held, None) if isinstance(held, str) else held
        if name not in taken:
            taken[name] = tensors[name] if strides is None else _with_strides(tensors[name], strides)
        return taken[name]

    value = decode(form, {"$tensor": tensor})
    if taken.keys() != tensors.keys():
        raise ValueError("a tensor of which nothing is said")
    return value


_UNHELD = (torch.complex32, torch.complex128)


def _is_permuted(tensor: Tensor) -> bool:
    """Whether the tensor is not contiguous, yet fills its memory, as in the channels-last format."""
    like = torch.empty_like(tensor, device="meta")
    ordinary = torch.empty(tensor.shape, device="meta")
    return tensor.numel() > 0 and like.stride() == tensor.stride() and tensor.stride() != ordinary.stride()


def _with_strides(tensor: Tensor, strides: list[int]) -> Tensor:
    """The tensor in memory of these strides, in which it takes no more room. Raises ValueError for other strides."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    if extent != tensor.numel() or not all(0 <= stride <= extent for stride in strides):
        raise ValueError("strides that do not fit their tensor")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
