"""Real values on the meta device: of whatever no input and no large weight goes into.

A stride that a detector keeps in a buffer, `torch.arange(height)`, a learned number: code reads them (`.item()`,
`.tolist()`, `for s in strides`), and what it reads decides what runs. Their data is worked out beside the shapes.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from compressor.graph.held import leaves
from compressor.graph.tensors import has_data

MOST = 16_384  # elements; more than this nobody reads
_MOST_TRAINED = 64  # of a parameter: a scale, a gate
_REPLACING = threading.RLock()  # one after another, so that each puts back what it found


class Listener(Protocol):
    """Who is told of what passes the dispatcher by."""

    def read(self, tensor: Tensor) -> None:
        """Python reads the data, or takes them along."""

    def made(self, tensor: Tensor) -> None:
        """Python makes a tensor of numbers."""


_READING = ("tolist", "numpy", "__array__", "__repr__", "__reduce_ex__", "untyped_storage", "data_ptr")
_MAKING = ("tensor", "as_tensor", "asarray")


def may_be_read(tensor: Tensor, module: nn.Module) -> bool:
    """Whether the data of a module's tensor are kept beside its shape.

    Of torch's own layers only a batch norm without momentum reads one, the number of batches that it saw.
    """
    if type(module).__module__.startswith("torch.nn.") and (tensor.ndim or getattr(module, "momentum", 0) is not None):
        return False
    return tensor.numel() <= (_MOST_TRAINED if isinstance(tensor, nn.Parameter) else MOST) and has_data(tensor)


class Values:
    """The data of tensors on the meta device, as far as they are known."""

    def __init__(self, held: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        self.held = {id(blank): (blank, data) for blank, data in held}  # the model's own, as it starts
        self.edited: dict[int, Callable[[Tensor], Tensor]] = {}  # what a trial makes of these, by the same numbers
        self._known: dict[int, tuple[Tensor, Tensor | None]] = {}

    def forget(self) -> None:
        """Everything but what the model starts with."""
        self._known.clear()

    def of(self, tensor: Tensor) -> Tensor | None:
        known = self._known.get(id(tensor))
        if known is None:
            if not tensor.is_meta:
                return tensor
            blank, data = self.held.get(id(tensor), (None, None))
            if blank is None or data is None:
                return None
            data = self.edited[id(tensor)](data) if id(tensor) in self.edited else data
            if data.shape != tensor.shape:
                return None
            known = self._known[id(tensor)] = tensor, data.detach().cpu().clone()
        return known[1]

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """An operator gave `output` on the meta device: work its data out, if those of all that it read are known."""
        first = args[0] if args else None
        first = first[0] if type(first) in (list, tuple) and first else first
        if isinstance(first, Tensor) and first.is_meta and id(first) not in self._known and id(first) not in self.held:
            return  # as most
        made = leaves(output)
        if not any(leaf.is_meta for leaf in made) or sum(leaf.numel() for leaf in made) > MOST:
            if func._schema.is_mutable and isinstance(first, Tensor) and any(self.of(leaf) is None for leaf in made):
                self._lose(first)
            return
        worked_out = self.work_out(func, args, kwargs)
        if worked_out is None:
            if func._schema.is_mutable and isinstance(first, Tensor):
                self._lose(first)
            return
        for leaf, value in zip(made, leaves(worked_out), strict=True):
            self._known[id(leaf)] = leaf, value if leaf.shape == value.shape else None

    def work_out(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator gives on data; None where something that it reads is not known."""
        try:
            data = [self._data(value) for value in args]
            options = {key: self._data(value) for key, value in kwargs.items()}
            if "device" in options:
                options["device"] = torch.device("cpu")
            result = func(*data, **options)
        except Exception:  # something is not known; or what objects to the data did not object to the shapes
            return None
        if "empty" in func.__name__:
            for tensor in leaves(result):
                tensor.zero_()
        return result

    def _data(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            known = self.of(value)
            if known is None:
                raise LookupError("its value is not known")
            return known
        return [self._data(item) for item in value] if isinstance(value, list | tuple) else value

    def on_meta(self, result: Any) -> Any:
        """Shapes for data that were worked out, which are remembered."""
        if isinstance(result, list | tuple):
            return type(result)(self.on_meta(item) for item in result)
        return self._blank(result) if isinstance(result, Tensor) else result

    def _blank(self, data: Tensor) -> Tensor:
        blank = torch.empty_like(data, device="meta")
        self._known[id(blank)] = blank, data
        return blank

    def _lose(self, tensor: Tensor) -> None:
        """The tensor was overwritten by what is not known, and with it everything that shares its memory."""
        lost = self.of(tensor)
        if lost is None:
            return
        memory = lost.untyped_storage().data_ptr()
        for number, (one, data) in list(self._known.items()):
            if data is not None and data.untyped_storage().data_ptr() == memory:
                self._known[number] = one, None
        self._known[id(tensor)] = tensor, None

    @contextmanager
    def watched(self, listener: Listener | None = None) -> Iterator[None]:
        """Meanwhile `tolist`, `numpy`, `pickle` and the like read what is known, and the listener hears of each.

        None of them passes torch's dispatcher, nor does `torch.tensor`, whose data are taken down.
        """

        def reading(original: Any) -> Any:
            def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                if listener is not None:
                    listener.read(tensor)
                known = self.of(tensor) if isinstance(tensor, Tensor) and tensor.is_meta else None
                return original(tensor if known is None else known, *args, **kwargs)

            return read

        def making(original: Any) -> Any:
            def make(*args: Any, **kwargs: Any) -> Any:
                made = original(*args, **kwargs)
                if listener is not None and isinstance(made, Tensor):
                    listener.made(made)
                if isinstance(made, Tensor) and made.is_meta and id(made) not in self._known and made.numel() <= MOST:
                    self._take_down(made, args[-1] if args else kwargs.get("data"))
                return made

            return make

        with _REPLACING:
            places: list[tuple[Any, str]] = [(Tensor, name) for name in (*_READING, "new_tensor")]
            places += [(torch, name) for name in _MAKING]
            before = [(owner, name, vars(owner).get(name)) for owner, name in places]
            for owner, name in places:
                made = name in ("new_tensor", *_MAKING)
                setattr(owner, name, (making if made else reading)(getattr(owner, name)))
            try:
                yield
            finally:
                for owner, name, original in before:
                    delattr(owner, name) if original is None else setattr(owner, name, original)

    def _take_down(self, made: Tensor, data: Any) -> None:
        try:
            value = torch.from_numpy(np.array(data)).to(made.dtype)
        except Exception:  # a list of tensors on the meta device, or what only torch makes a tensor of
            return
        if value.shape == made.shape:
            self._known[id(made)] = made, value
