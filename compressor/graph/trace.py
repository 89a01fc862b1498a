"""Run a model once on shapes alone and write down every ATen operator that runs, with the module that ran it.

The model is copied without its data (every tensor moves to the meta device), so a trace costs milliseconds, touches
nothing of the user's, and sees functional calls, bare parameters and control flow alike. A model that needs real
values to run is traced on a real copy instead.
"""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph.copies import CONSTANTS
from compressor.graph.shapes import plain_name, run_on_shapes
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import named_tensors


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that the trace saw: its number, which an in-place operator keeps, and its shape."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Op:
    """One operator call; tensors among the arguments stand as `TensorRef`."""

    func: torch._ops.OpOverload
    name: str  # without namespace, overload and the underscore of in-place forms: "convolution", "add", "view"
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[TensorRef, ...]  # every tensor among the arguments, in order
    outputs: tuple[TensorRef, ...]
    module: str  # dotted name of the innermost module that was running


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a module: the operators `ops[start:end]` ran inside it."""

    module: str
    start: int
    end: int
    inputs: tuple[TensorRef, ...]
    outputs: tuple[TensorRef, ...]


@dataclass
class Trace:
    """What ran, in order. `error` holds the exception that ended an incomplete trace."""

    parameters: dict[int, str] = field(default_factory=dict)  # tensor number -> name in the state dict
    inputs: tuple[TensorRef, ...] = ()
    outputs: tuple[TensorRef, ...] = ()
    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    error: Exception | None = None


def trace(model: nn.Module, example: Any, *, training: bool = False) -> Trace:
    """Trace `model` on `example` (a tensor with the batch first, or a tuple or dict of them); the model is untouched.

    Raises:
        ModelError: the model does not run on the example.
    """
    result = run(skeleton(model), example, training=training)
    if result.error is not None:
        result = run(skeleton(model, real=True), example, training=training)
    if result.error is not None:
        raise ModelError(refusal(example, result.error)) from result.error
    return result


def refusal(example: Any, error: Exception) -> str:
    shapes = ", ".join("x".join(map(str, leaf.shape)) for leaf in tree_leaves(example) if isinstance(leaf, Tensor))
    return f"the model does not run on an input of shape {shapes} ({cause(error)}); give the right one with --input"


def cause(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run(model: nn.Module, example: Any, *, training: bool = False) -> Trace:
    """Trace a `skeleton` itself; a failure in the middle is kept in `error` beside what ran before it."""
    arguments, keywords = _ready(model, example, training)
    recorder = _Recorder(model)
    recorder.result.inputs = tuple(recorder.refs((arguments, keywords)))
    with torch.no_grad(), recorder.watching(model):
        try:
            with recorder:
                output = model(*arguments, **keywords)
            recorder.result.outputs = tuple(recorder.refs(output))
        except Exception as error:  # any code of the user's may fail on shapes alone, in any way
            recorder.result.error = error
    return recorder.result


@dataclass(frozen=True, slots=True)
class Ran:
    """One operator call of an outline: its name, its arguments that are no tensors, the shapes of what it gave."""

    name: str
    args: tuple[Any, ...]  # None in the place of a tensor or a list
    shapes: tuple[tuple[int, ...], ...]


def outline(model: nn.Module, example: Any, *, training: bool = False) -> tuple[list[Ran], Exception | None]:
    """The operators that run in a `skeleton`, without who ran them on what, and what ended the run before its end."""
    arguments, keywords = _ready(model, example, training)
    recorder = _Outline(_device(model).type == "meta")
    try:
        with torch.no_grad(), recorder:
            model(*arguments, **keywords)
    except Exception as error:  # any code of the user's may fail on shapes alone, in any way
        return recorder.ops, error
    return recorder.ops, None


def _ready(model: nn.Module, example: Any, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    set_mode(model, training)
    device = _device(model)
    return call_arguments(tree_map(lambda leaf: _moved(leaf, device), example))


def _device(model: nn.Module) -> torch.device:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def call_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How an example is passed to a model: a dict as keywords, a tuple or list as positions, a tensor alone."""
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def set_mode(model: nn.Module, training: bool) -> None:
    """`model.train(training)`, also for exported programs, whose `train` and `eval` refuse."""
    try:
        model.train(training)
    except NotImplementedError:
        for module in model.modules():
            module.training = training


def _moved(leaf: Any, device: torch.device) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_like(leaf, device="meta") if device.type == "meta" else leaf.detach().to(device).clone()


_REPLACING = threading.RLock()  # one trace after another, so that each puts back what it found


class _Watching(TorchDispatchMode):
    """A mode that dynamo may look into: keeping it out costs more than most operators do on shapes alone."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Outline(_Watching):
    """Writes down name and shapes of every operator."""

    def __init__(self, on_meta: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Ran] = []
        self._on_meta = on_meta

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = run_on_shapes(func, args, kwargs or {}) if self._on_meta else func(*args, **(kwargs or {}))
        leaves = (output,) if isinstance(output, Tensor) else tree_iter(output)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
        plain = tuple(None if isinstance(value, Tensor | list | tuple) else value for value in args)
        self.ops.append(Ran(plain_name(func), plain, shapes))
        return output


class _Recorder(_Watching):
    """Writes every operator into `result`; keeps each tensor alive so that an object's identity names it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = Trace()
        self._known: dict[int, TensorRef] = {}
        self._alive: list[Tensor] = []
        self._module = ""
        self._on_meta = _device(model).type == "meta"
        for name, tensor in named_tensors(model).items():
            self.result.parameters[self._ref(tensor).index] = name

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
        output = run_on_shapes(func, args, kwargs or {}) if self._on_meta else func(*args, **(kwargs or {}))
        made: list[TensorRef] = []
        self._written(output, made)
        self.result.ops.append(Op(func, plain_name(func), arguments, options, tuple(seen), tuple(made), self._module))
        return output

    def refs(self, values: Any) -> Iterator[TensorRef]:
        if isinstance(values, Tensor):
            values = (values,)
        elif type(values) is not tuple or not all(isinstance(value, Tensor) for value in values):
            values = tree_iter(values)
        return (self._ref(leaf) for leaf in values if isinstance(leaf, Tensor))

    def _ref(self, tensor: Tensor) -> TensorRef:
        known = self._known.get(id(tensor))
        if known is None or known.shape != tensor.shape:  # an operator may resize a tensor in place
            number = len(self._alive) if known is None else known.index
            known = self._known[id(tensor)] = TensorRef(number, tuple(tensor.shape), tensor.dtype)
            self._alive.append(tensor)
        return known

    def _written(self, value: Any, seen: list[TensorRef]) -> Any:
        """The value with references for its tensors, which are also added to `seen`."""
        kind = type(value)
        if kind in CONSTANTS:
            return value
        if isinstance(value, Tensor):
            ref = self._ref(value)
            seen.append(ref)
            return ref
        if isinstance(value, list | tuple):
            return kind([self._written(item, seen) for item in value])
        return value

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Take down every call of the model's modules, hooks of the user's included.

        `nn.Module.__call__` is replaced meanwhile, as torch.fx does: hooks on every module cost more than the run.
        """
        scripted = torch.jit.ScriptModule  # what it runs counts as its owner's
        names = {id(m): name for name, m in model.named_modules() if not isinstance(m, scripted)}

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
            self.result.calls.append(ModuleCall(name, start, len(self.result.ops), tuple(self.refs(inputs)), made))
            return output

        with _REPLACING:
            original = nn.Module.__call__
            nn.Module.__call__ = call  # type: ignore[method-assign]
            try:
                yield
            finally:
                nn.Module.__call__ = original  # type: ignore[method-assign]
