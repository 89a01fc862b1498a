"""What is taken down of a run: every ATen operator, the module that ran it, and what is left of its tensors."""

import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.errors import ModelError
from compressor.graph.copies import CONSTANTS
from compressor.graph.held import tensors_in
from compressor.graph.operators import lookup
from compressor.graph.records import Found, ModuleCall, Op, Ran, TensorRef, Trace, plain_name
from compressor.graph.shapes import run_on_shapes
from compressor.graph.skeleton import Replica

Answer = Callable[[int, Any], Any]  # how many values Python has read, and the next one -> what it is told


class _Watching(TorchDispatchMode):
    """A mode that dynamo may look into: keeping it out costs more than most operators do on shapes alone."""

    def __init__(self, replica: Replica, answer: Answer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values, self._on_meta = replica.values, replica.device.type == "meta"
        self._answer = answer
        self.reads: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def _given(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        if self._on_meta:
            output = run_on_shapes(func, args, kwargs or {}, self._values)
        else:
            output = func(*args, **(kwargs or {}))
        if func is _READS:
            output = self._answer(len(self.reads), output)
            self.reads.append(output)
        return output


_READS = torch.ops.aten._local_scalar_dense.default


_EXACT = frozenset({torch.bool, torch.int64, torch.int32})
_MOST_FOUND = 1_000_000  # numbers


class Outline(_Watching):
    """Writes down name and shapes of every operator; gives what was found before where `found` has it, by the names of
    all operators but those of layout: which boxes remain, how often a loop runs.
    """

    def __init__(self, replica: Replica, answer: Answer, found: Sequence[tuple[str, Found]]) -> None:
        super().__init__(replica, answer)
        self.ops: list[Ran] = []
        self._found = [*found]
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operator, name, plain = lookup(func), plain_name(func), tuple(map(_plain, args))
        self.ops.append(Ran(operator, name, plain, ()))
        output = self._given(func, args, kwargs)
        if self._found and not operator.incidental:
            self._next += 1
            told, found = self._found[self._next - 1] if self._next <= len(self._found) else ("", ())
            output = _replaced(output, found) if told == name else output
        self.ops[-1] = Ran(operator, name, plain, tuple(tuple(leaf.shape) for leaf in _leaves(output)))
        return output


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value) if all(type(entry) is int for entry in value) else None
    return None if isinstance(value, Tensor) else value


def _replaced(output: Any, found: Found) -> Any:
    if isinstance(output, Tensor):
        return output if not found or found[0] is None else found[0].clone()
    if isinstance(output, tuple) and len(found) == len(output):
        return tuple(one if known is None else known.clone() for one, known in zip(output, found, strict=True))
    return output


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


def _leaves(values: Any) -> Iterable[Tensor]:
    """The tensors of a value: most are one, or a plain tuple of them."""
    if isinstance(values, Tensor):
        return (values,)
    if type(values) is tuple and all(isinstance(value, Tensor) for value in values):
        return values
    return tensors_in(values)


def _exact(tensor: Tensor) -> Tensor | None:
    return tensor.clone() if tensor.dtype in _EXACT and tensor.numel() <= _MOST_FOUND else None


class _Watched(weakref.ref[Tensor]):
    """A reference that knows under which number its tensor, once gone, is to be forgotten."""

    __slots__ = ("number",)
    number: int


class Recorder(_Watching):
    """Writes every operator into `result`; an object's identity names a tensor as long as it lives."""

    def __init__(self, replica: Replica, answer: Answer) -> None:
        super().__init__(replica, answer)
        self.result = Trace()
        self._modules = replica.modules
        self._known: dict[int, TensorRef] = {}
        self._watched: dict[int, _Watched] = {}
        self._lying: dict[int, tuple[Any, TensorRef]] = {}  # by its memory, whose number is taken as long as it is held
        self._count = 0
        self._module = ""
        self._running = False  # whether an operator is, whose own code may look at memory
        for name, tensor in replica.tensors.items():
            self.result.parameters[self._ref(tensor, made=True).index] = name
        for held in map(vars, replica.modules.values()):
            for value in held.values():
                if isinstance(value, Tensor):
                    self._ref(value, made=True)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        seen: list[TensorRef] = []
        arguments = self._written(args, seen)
        options = {key: self._written(value, seen) for key, value in kwargs.items()} if kwargs else {}
        self._running = True
        try:
            output = self._given(func, args, kwargs)
        finally:
            self._running = False
        made: list[TensorRef] = []
        self._written(output, made, made=True)
        if not self._on_meta:
            self.result.found.append(() if func._schema.is_mutable else tuple(map(_exact, _leaves(output))))
        called = func, lookup(func), plain_name(func)
        self.result.ops.append(Op(*called, arguments, options, tuple(seen), tuple(made), self._module))
        return output

    def refs(self, values: Any) -> Iterator[TensorRef]:
        return map(self._ref, _leaves(values))

    def given(self, values: Any) -> tuple[TensorRef, ...]:
        """The tensors of the example."""
        return tuple(self._ref(leaf, made=True) for leaf in _leaves(values))

    def read(self, tensor: Tensor) -> None:
        """Python reads the data, which torch does not tell of."""
        known = self._known.get(id(tensor))
        if known is not None and not self._running:
            self.result.left.append((known, f"{self._module or 'the model'} reads its values"))

    def made(self, tensor: Tensor) -> None:
        """Python makes a tensor of numbers, or gives one that is there another name."""
        storage = _storage(tensor)
        self._ref(tensor, made=storage is None or storage._cdata not in self._lying)

    def survivors(self) -> list[tuple[TensorRef, str]]:
        """Tensors, other than the outputs, that an operator made and somebody still holds."""
        given = {*self.result.parameters, *(ref.index for ref in self.result.inputs)}
        outputs = {ref.index for ref in self.result.outputs}
        if any(ref.index not in given and ref.index not in outputs for ref in self._known.values()):
            gc.collect(1)  # what only holds itself is nobody's
        watched = [(self._known[number], found()) for number, found in list(self._watched.items())]
        alive = [(ref, tensor) for ref, tensor in watched if tensor is not None and ref.index not in given]
        del watched
        bases = {id(base_of(tensor)) for _, tensor in alive}
        kept = {id(tensor): place for place, tensor in self._kept()} if len(alive) > len(outputs) else {}
        return [
            (ref, kept.get(id(tensor), "still held by something after the run"))
            for ref, tensor in alive
            if ref.index not in outputs and (id(tensor) not in bases or sys.getrefcount(tensor) > _OF_A_BASE)
        ]

    def _kept(self) -> Iterator[tuple[str, Tensor]]:
        """What the model's modules hold in attributes."""
        for name, module in self._modules.items():
            for attribute, value in vars(module).items():
                for tensor in tensors_in(value):
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
        watched = self._watched[id(tensor)] = _Watched(tensor, self._forget)
        watched.number = id(tensor)
        shape, storage = tuple(tensor.shape), _storage(tensor)
        lying = None if storage is None or made else self._lying.get(storage._cdata)
        if lying is not None and (lying[1].shape, lying[1].dtype) == (shape, tensor.dtype):  # as `x.data` is
            ref = lying[1]
        else:
            self.result.strange |= not made and tensor.is_meta and tensor.is_floating_point()
            ref = TensorRef(self._count, shape, tensor.dtype)
            self._count += 1
            if storage is not None:
                self._lying[storage._cdata] = storage if tensor.is_meta else StorageWeakRef(storage), ref
        self._known[id(tensor)] = ref
        return ref

    def _forget(self, gone: Any) -> None:
        self._known.pop(gone.number, None)
        self._watched.pop(gone.number, None)

    def _written(self, value: Any, seen: list[TensorRef], made: bool = False) -> Any:
        """The value with references for its tensors, which are also added to `seen`."""
        kind = type(value)
        if kind in CONSTANTS:
            return value
        if isinstance(value, Tensor):
            ref = self._ref(value, made)
            seen.append(ref)
            return ref
        if isinstance(value, list | tuple):
            return kind([item if type(item) in CONSTANTS else self._written(item, seen, made) for item in value])
        return value

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take down every call of the model's modules, hooks of the user's included.

        `nn.Module.__call__` is replaced meanwhile, as torch.fx does: hooks on every module cost more than the run.
        """
        scripted = torch.jit.ScriptModule  # what it runs counts as its owner's
        names = {id(m): name for name, m in self._modules.items() if not isinstance(m, scripted)}

        def call(module: nn.Module, *inputs: Any, **keywords: Any) -> Any:
            name = names.get(id(module))
            if name is None:
                return original(module, *inputs, **keywords)
            start, outer, self._module = len(self.result.ops), self._module, name
            try:
                output = original(module, *inputs, **keywords)
            finally:
                self._module = outer
            made = (self._ref(output),) if isinstance(output, Tensor) else tuple(self.refs(output))
            given = tuple(self.refs((*inputs, *keywords.values()) if keywords else inputs))
            self.result.calls.append(ModuleCall(name, start, len(self.result.ops), given, made))
            return output

        original = nn.Module.__call__
        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]
