"""What is taken down of a run: every ATen operator, the module that ran it, and what is left of its tensors."""

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from compressor.errors import ModelError
from compressor.graph.copies import CONSTANTS
from compressor.graph.held import leaves, tensors_in
from compressor.graph.operators import lookup
from compressor.graph.outline import Answer, Watching, is_reserve
from compressor.graph.records import ModuleCall, Op, TensorRef, Trace, plain_name
from compressor.graph.skeleton import Replica

_EXACT = frozenset({torch.bool, torch.int64, torch.int32})
_MOST_FOUND = 1_000_000  # numbers


def base_of(tensor: Tensor) -> Tensor | None:
    """What a tensor is a view of, the object itself whatever a subclass makes of attributes."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor._base


_OF_A_BASE = 4  # references to a tensor that only its views keep alive: theirs, and three where they are counted


def _storage(tensor: Tensor) -> Any:
    """Where a tensor's data lie; None of one that has none of its own."""
    try:
        return _UNTYPED(tensor)
    except (NotImplementedError, RuntimeError):
        return None


_UNTYPED = torch._C.TensorBase.untyped_storage


def _exact(tensor: Tensor) -> Tensor | None:
    return tensor.clone() if tensor.dtype in _EXACT and tensor.numel() <= _MOST_FOUND else None


class _Watched(weakref.ref[Tensor]):
    """A reference that knows under which number its tensor, once gone, is to be forgotten."""

    __slots__ = ("number",)
    number: int


class Recorder(Watching):
    """Writes every operator into `result`; an object's identity names a tensor as long as it lives.

    Tensors on the meta device are kept alive until the end; those with data go when the model lets them go.
    """

    def __init__(self, replica: Replica, answer: Answer) -> None:
        super().__init__(replica, answer)
        self.result = Trace()
        self._modules = replica.modules
        self.result.parameters = dict(enumerate(replica.tensors))
        self._known = {id(tensor): ref for tensor, ref in replica.references}
        self._alive = list(replica.references) if self._on_meta else []
        self._placed = 0  # how many of these stand in `_lying`
        self._watched: dict[int, _Watched] = {}
        self._lying: dict[int, tuple[Any, TensorRef]] = {}  # by its memory, whose number is taken as long as it is held
        self._count = self.result.own = len(replica.references)
        self._module = ""
        self._running = False  # whether an operator is, whose own code may look at memory
        for tensor, ref in () if self._on_meta else replica.references:
            self._hold(tensor, ref)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if is_reserve(func, args, kwargs):
            return self._reserve
        seen: list[TensorRef] = []
        arguments = self._written(args, seen)
        options = dict(zip(kwargs, self._written(tuple(kwargs.values()), seen), strict=True)) if kwargs else {}
        self._running = True
        try:
            output = self._given(func, args, kwargs or {})
        finally:
            self._running = False
        made = self.refs(output, made=True)
        if not self._on_meta:
            self.result.found.append(() if func._schema.is_mutable else tuple(map(_exact, leaves(output))))
        called = func, lookup(func), plain_name(func)
        self.result.ops.append(Op(*called, arguments, options, tuple(seen), made, self._module))
        return output

    def refs(self, values: Any, made: bool = False) -> tuple[TensorRef, ...]:
        """Of all tensors in a value; `made` says that they come from something seen: an operator, the example."""
        one = values[0] if type(values) is tuple and len(values) == 1 else values
        if type(one) is Tensor:  # as most
            return (self._ref(one, made),)
        return tuple([self._ref(leaf, made) for leaf in leaves(values)])

    def read(self, tensor: Tensor) -> None:
        """Python reads the data, which torch does not tell of."""
        known = self._known.get(id(tensor))
        if known is not None and not self._running:
            self.result.left.append((known, f"{self._module or 'the model'} reads its values"))

    def made(self, tensor: Tensor) -> None:
        """Python makes a tensor of numbers, or gives one that is there another name."""
        storage = _storage(tensor)
        self._ref(tensor, made=storage is None or storage._cdata not in self._memory())

    def survivors(self) -> list[tuple[TensorRef, str]]:
        """Tensors, other than the outputs, that an operator made and somebody still holds."""
        given = {*self.result.parameters, *(ref.index for ref in self.result.inputs)}
        outputs = {ref.index for ref in self.result.outputs}
        watched: list[tuple[TensorRef, weakref.ref[Tensor]]]
        watched = [(self._known[number], found) for number, found in self._watched.items()]
        own = [tensor for tensor, ref in self._alive if ref.index not in given]
        watched += [(self._known[id(tensor)], weakref.ref(tensor)) for tensor in own]
        del own
        self._alive.clear()
        if any(ref.index not in given and ref.index not in outputs and found() is not None for ref, found in watched):
            gc.collect(1)  # what only holds itself is nobody's
        found = [(ref, each()) for ref, each in watched if ref.index not in given]
        alive = [(ref, tensor) for ref, tensor in found if tensor is not None]
        del watched, found
        bases = {id(base_of(tensor)) for _, tensor in alive}
        left = [
            (ref, tensor)
            for ref, tensor in alive
            if ref.index not in outputs and (id(tensor) not in bases or sys.getrefcount(tensor) > _OF_A_BASE)
        ]
        kept = {id(tensor): place for place, tensor in self._kept()} if left else {}
        return [(ref, kept.get(id(tensor), "still held by something after the run")) for ref, tensor in left]

    def _kept(self) -> Iterator[tuple[str, Tensor]]:
        """What the model's modules hold in attributes."""
        for name, module in self._modules.items():
            for attribute, value in vars(module).items():
                for tensor in tensors_in(value) if attribute != _INSTEAD else ():
                    yield f"kept as {name or 'the model'}.{attribute} after the run", tensor

    def _ref(self, tensor: Tensor, made: bool = False) -> TensorRef:
        """The tensor's reference; one that nothing seen has `made` is another name of what lies in the same memory."""
        known = self._known.get(id(tensor))
        if known is None:
            return self._met(tensor, made)
        if known.shape != tensor.shape:  # an operator may resize a tensor in place
            known = self._known[id(tensor)] = TensorRef(known.index, tuple(tensor.shape), tensor.dtype)
        return known

    def _met(self, tensor: Tensor, made: bool) -> TensorRef:
        if tensor.is_nested:
            place = self._module or "the model"
            raise ModelError(f"{place} makes a nested tensor, whose channels cannot be followed: pad it instead")
        shape = tuple(tensor.shape)
        storage = None if made else _storage(tensor)
        _, ref = (None, None) if storage is None else self._memory().get(storage._cdata, (None, None))
        if ref is None or (ref.shape, ref.dtype) != (shape, tensor.dtype):  # else it is one, as `x.data` is of `x`
            self.result.strange |= not made and tensor.is_meta and tensor.is_floating_point()
            ref = TensorRef(self._count, shape, tensor.dtype)
            self._count += 1
        self._hold(tensor, ref)
        return ref

    def _hold(self, tensor: Tensor, ref: TensorRef) -> None:
        self._known[id(tensor)] = ref
        if tensor.is_meta:
            self._alive.append((tensor, ref))
        else:
            watched = self._watched[id(tensor)] = _Watched(tensor, self._forget)
            watched.number = id(tensor)
            self._lie(tensor, ref)

    def _memory(self) -> dict[int, tuple[Any, TensorRef]]:
        """By where data lie, the last tensor that came up there."""
        for tensor, ref in self._alive[self._placed :]:
            self._lie(tensor, ref)
        self._placed = len(self._alive)
        return self._lying

    def _lie(self, tensor: Tensor, ref: TensorRef) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self._lying[storage._cdata] = storage if tensor.is_meta else StorageWeakRef(storage), ref

    def _forget(self, gone: Any) -> None:
        self._known.pop(gone.number, None)
        self._watched.pop(gone.number, None)

    def _written(self, values: Any, seen: list[TensorRef]) -> Any:
        """Arguments with references for their tensors, which are also added to `seen`."""
        written = []
        for value in values:
            if type(value) in CONSTANTS:
                pass
            elif isinstance(value, Tensor):
                value = self._ref(value)
                seen.append(value)
            elif isinstance(value, list | tuple) and type(value[0] if value else 0) is not int:
                value = self._written(value, seen)
            written.append(value)
        return tuple(written) if type(values) is tuple else type(values)(written)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take down every call of the model's modules, hooks of the user's included.

        Each module is told to run something else, as one that was compiled in place is: hooks on every module cost more
        than the run, and after another `nn.Module.__call__` Python looks up every attribute of every class again.
        """

        ops, calls, refs = self.result.ops, self.result.calls, self.refs

        def call(module: nn.Module, name: str, *inputs: Any, **keywords: Any) -> Any:
            start, outer, self._module = len(ops), self._module, name
            try:
                output = module._call_impl(*inputs, **keywords)
            finally:
                self._module = outer
            made = refs(output)
            given = refs((*inputs, *keywords.values()) if keywords else inputs)
            calls.append(ModuleCall(name, start, len(ops), given, made))
            return output

        scripted = torch.jit.ScriptModule  # what it runs counts as its owner's
        spaces = [(vars(m), partial(call, m, name)) for name, m in self._modules.items() if not isinstance(m, scripted)]
        for held, instead in spaces:
            held[_INSTEAD] = instead
        try:
            yield
        finally:
            for held, _ in spaces:
                held.pop(_INSTEAD, None)


_INSTEAD = "_compiled_call_impl"
