"""Run a model once on shapes alone and write down every ATen operator that runs, with the module that ran it.

The model is copied without its data (every tensor moves to the meta device), so a trace costs milliseconds, touches
nothing of the user's, and sees functional calls, bare parameters and control flow alike. A model that needs real
values to run is traced on a real copy instead.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves, tree_map

from compressor.errors import ModelError


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
    outputs: tuple[TensorRef, ...]
    module: str  # dotted name of the innermost module that was running

    @property
    def inputs(self) -> list[TensorRef]:
        return [leaf for leaf in _leaves((self.args, self.kwargs)) if isinstance(leaf, TensorRef)]


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
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the model does not run on an input of shape {shapes} ({cause}); give the right one with --input"


def skeleton(model: nn.Module, *, real: bool = False) -> nn.Module:
    """A copy of the model that may be edited and run freely: on the meta device, or with real data if `real`."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _blank(tensor, real)
    return copy.deepcopy(model, memo)


def _blank(tensor: Tensor, real: bool) -> Tensor:
    blank = tensor.detach().clone() if real else torch.empty_like(tensor, device="meta")
    return nn.Parameter(blank, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank


def run(model: nn.Module, example: Any, *, training: bool = False) -> Trace:
    """Trace a `skeleton` itself; a failure in the middle is kept in `error` beside what ran before it."""
    set_mode(model, training)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    arguments, keywords = call_arguments(tree_map(lambda leaf: _moved(leaf, device), example))
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


class _Recorder(TorchDispatchMode):
    """Writes every operator into `result`; keeps each tensor alive so that an object's identity names it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = Trace()
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._stack: list[str] = [""]
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.result.parameters[self._ref(tensor).index] = name

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs, options = tree_map(self._written, args), tree_map(self._written, kwargs)
        output = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        self.result.ops.append(Op(func, plain, inputs, options, tuple(self.refs(output)), self._stack[-1]))
        return output

    def refs(self, values: Any) -> Iterator[TensorRef]:
        return (self._ref(leaf) for leaf in tree_iter(values) if isinstance(leaf, Tensor))

    def _ref(self, tensor: Tensor) -> TensorRef:
        number = self._numbers.get(id(tensor))
        if number is None:
            number = self._numbers[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
        return TensorRef(number, tuple(tensor.shape), tensor.dtype)

    def _written(self, leaf: Any) -> Any:
        return self._ref(leaf) if isinstance(leaf, Tensor) else leaf

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            before, after = self._hooks(name)
            handles.append(module.register_forward_pre_hook(before, prepend=True))
            handles.append(module.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        starts: list[int] = []

        def before(_module: nn.Module, _inputs: Any) -> None:
            starts.append(len(self.result.ops))
            self._stack.append(name)

        def after(_module: nn.Module, inputs: Any, output: Any) -> None:
            self._stack.pop()
            refs = tuple(self.refs(inputs)), tuple(self.refs(output))
            self.result.calls.append(ModuleCall(name, starts.pop(), len(self.result.ops), *refs))

        return before, after


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(tuple(value.values()))
    else:
        yield value
