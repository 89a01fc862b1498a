"""Run a network between two of its operators on stored activations, again and again.

A pass over layers that are changed one after another would run the network from its start for each of them. Here the
tensors that are alive between two operators are stored for every batch, and later passes start from them: the model's
own code runs from its first line, but up to that place its operators compute nothing.
"""

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph.outline import is_reserve
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Op, TensorRef, Trace, Way, alike, call_arguments, refused, run
from compressor.pruning.reconstruction.calibration import first_images

Hook = Callable[[Sequence[Any], Any], None]  # arguments of an operator and, after it ran, what it gave
Hooks = Mapping[int, Sequence[Hook]]  # by operator
_LARGEST_HALF = 6e4
_START = -1  # before the first operator


class DivergedError(ModelError):
    """The network ran other operators than in its trace."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"the network runs other operators on some images than on others ({what}), so its layers cannot be "
            "followed: choose channels by weights alone, method l1 and allocate uniform"
        )


class Program:
    """The data flow of one trace: which memory each operator writes and reads."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.ops: list[Op] = trace.ops
        self.skips: list[int | None] = []  # what stands for an operator that is skipped, see `_skip`
        self.root: dict[int, int] = {}  # tensor number -> the tensor whose memory it is a view of
        self.consumers: dict[int, list[int]] = {}  # tensor number -> operators that are given it
        self._writers: dict[int, list[int]] = {}  # of a memory, every operator that wrote all of it
        self._shape: dict[int, tuple[int, ...]] = {}
        self._last: dict[int, int] = {}
        self._mixed: dict[int, int] = {}  # memory written in parts, or through a view: the first such operator
        self._unsteady = len(self.ops)  # the first operator whose result has no fixed shape
        for at, op in enumerate(self.ops):
            self._add(at, op)
        for ref in (*trace.outputs, *(ref for ref, _ in trace.left)):
            self._last[self.memory(ref)] = len(self.ops)

    def memory(self, ref: TensorRef) -> int:
        return self.root.get(ref.index, ref.index)

    def parameter(self, ref: TensorRef) -> str | None:
        """The name of the parameter or buffer that a tensor is, or is a view of."""
        return self.trace.parameters.get(self.memory(ref))

    def maker(self, ref: TensorRef) -> int:
        """The operator that made a tensor (not those that changed it in place); -1 for parameters and inputs."""
        return self._makers.get(ref.index, _START)

    def writers(self, memory: int) -> list[int]:
        """Every operator that writes a memory, the one that makes it first."""
        return self._writers.get(memory, [])

    @cached_property
    def _makers(self) -> dict[int, int]:
        made: dict[int, int] = {}
        for at, op in enumerate(self.ops):
            for ref in op.outputs:
                made.setdefault(ref.index, at)
        return made

    def _add(self, at: int, op: Op) -> None:
        aliased, written = _aliases(op)
        self.skips.append(_skip(op, aliased, written))
        for ref in op.inputs:
            self.consumers.setdefault(ref.index, [])
            if self.consumers[ref.index][-1:] != [at]:
                self.consumers[ref.index].append(at)
            self._last[self.memory(ref)] = at
        for ref in written:
            memory = self.memory(ref)
            self._writers.setdefault(memory, []).append(at)
            if ref.index != memory or memory in self.trace.parameters or memory not in self._shape:
                self._mixed.setdefault(memory, at)
        known = {ref.index for ref in op.inputs}
        for ref in op.outputs:
            if ref.index in known or ref.index in self.root:
                continue
            self.root[ref.index] = self.memory(aliased[0]) if aliased and not written else ref.index
            if self.root[ref.index] == ref.index:
                self._writers[ref.index] = [at]
                self._shape[ref.index] = ref.shape
        if torch.Tag.data_dependent_output in op.func.tags or torch.Tag.dynamic_output_shape in op.func.tags:
            self._unsteady = min(self._unsteady, at)

    @cached_property
    def stored_values(self) -> NDArray[np.float64]:
        """How many values a pass would have to store to go on behind each operator; infinite where it cannot."""
        values = np.zeros(len(self.ops) + 1)
        for memory, shape in self._shape.items():
            first, last = self._writers[memory][0], self._last.get(memory, _START)
            if last > first:
                values[first:last] += float(np.prod(shape))
        for memory, first in self._mixed.items():
            values[first : max(self._last[memory], first) + 1] = np.inf
        values[self._unsteady :] = np.inf
        return values

    def alive(self, at: int) -> dict[int, int]:
        """What is needed behind an operator: memory -> the operator that wrote it last."""
        found = {}
        for memory in self._shape:
            writers = self._writers[memory]
            if writers[0] <= at < self._last.get(memory, _START):
                found[memory] = writers[bisect.bisect_right(writers, at) - 1]
        return found

    @cached_property
    def changes_inputs(self) -> bool:
        return any(self.memory(ref) in self._writers for ref in self.trace.inputs)


def _aliases(op: Op) -> tuple[list[TensorRef], list[TensorRef]]:
    """The arguments whose memory the result shares, and those that are written."""
    shared: list[TensorRef] = []
    written: list[TensorRef] = []
    given = dict(zip((argument.name for argument in op.func._schema.arguments), op.args, strict=False)) | op.kwargs
    for argument in op.func._schema.arguments:
        if argument.alias_info is not None:
            refs = [leaf for leaf in tree_leaves(given.get(argument.name)) if isinstance(leaf, TensorRef)]
            (written if argument.alias_info.is_write else shared).extend(refs)
    return shared, written


_NOTHING = -1


def _skip(op: Op, shared: list[TensorRef], written: list[TensorRef]) -> int | None:
    """What stands for an operator that need not compute: an argument, by its place; nothing that was; None: it runs."""
    if not op.inputs or (shared and not written):
        return None
    if not written:
        return _NOTHING
    plain = len(written) == 1 and written[0] in op.args and len(op.outputs) == 1
    return op.args.index(written[0]) if plain else None


@dataclass
class _Batch:
    """One batch, and what is stored of the last pass over it."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    specs: dict[int, list[tuple[Any, ...]]]  # of an operator: shapes, strides and types of what it gives
    at: int = _START
    kept: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # memory -> its writer, and what it held


class Replay:
    """Passes of a copy of a network over the same batches; each can start where an earlier one stored its activations.

    Batches are as the network takes them, and all of them run the same operators as the first two images. `tensors` are
    the copy's own, by name: what is written there holds for the passes that follow.

    Raises:
        ModelError: the network does not run on the first images.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        self._replica = Replica(model, real=True)
        self.tensors = self._replica.tensors
        self.half = False  # whether activations are stored in half precision
        first = first_images(inputs[0], 2)
        with plain_attention():
            trace = run(self._replica, Way(first))
        if trace.error is not None:
            raise refused(first, trace.error) from trace.error
        self.program = Program(trace)
        specs: dict[tuple[Any, ...], dict[int, list[tuple[Any, ...]]]] = {}
        self.first = _Batch(*call_arguments(first, self._replica.model), {})
        self.batches = []
        for given in inputs:
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
            called = call_arguments(given, self._replica.model)
            self.batches.append(_Batch(*called, specs.setdefault(shapes, {})))

    def run(
        self, number: int | None, before: Hooks, after: Hooks, stop: int | None = None, store: int | None = None
    ) -> Any:
        """Run batch `number` from where it was stored last until operator `stop` is done, calling the hooks on the way.
        None: the first two images.

        With `store` the activations behind that operator are stored, and the next run starts there. Without `stop` the
        network runs to its end; returns its output then.
        """
        batch = self.first if number is None else self.batches[number]
        arguments, keywords = batch.arguments, batch.keywords
        if self.program.changes_inputs:
            arguments, keywords = tree_map(_cloned, (arguments, keywords))
        mode = _Mode(self, batch, before, after, stop, store)
        try:
            with alike(self._replica, Way(None)), plain_attention(), mode:
                output = self._replica.model(*arguments, **keywords)
        except _Stop:
            return None
        if stop is not None:
            raise DivergedError("the network ended early")
        return output


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fused layers of transformers, whose operators do not show what each weight is given."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


class _Stop(BaseException):
    """Nothing further is asked for. No `Exception`, which the model's code might catch."""


class _Mode(TorchDispatchMode):
    def __init__(
        self,
        replay: Replay,
        batch: _Batch,
        before: Hooks,
        after: Hooks,
        stop: int | None,
        store: int | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.replay, self.batch, self.program = replay, batch, replay.program
        self.before, self.after, self.stop = before, after, stop
        self.store = None if store is None or store <= batch.at else store
        self.wanted = {} if self.store is None else self.program.alive(self.store)
        self.held: dict[int, Tensor] = {}
        self.at = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        at, keywords = self.at, kwargs or {}
        if is_reserve(func, args, keywords):
            return func(*args, **keywords)
        self.at += 1
        if at >= len(self.program.ops) or self.program.ops[at].func is not func:
            raise DivergedError(f"operator {at} is {func}")
        op = self.program.ops[at]
        for hook in self.before.get(at, ()):
            hook(args, None)
        result = self._skipped(at, op, args, keywords) if at <= self.batch.at else func(*args, **keywords)
        made = _tensors(result)
        if at > self.batch.at and at not in self.batch.specs:
            self.batch.specs[at] = [(t.shape, t.stride(), t.dtype, t.device) for t in made]
        for ref, tensor in zip(op.outputs, made, strict=True):
            if ref.index in self.wanted:
                self.held[ref.index] = tensor
        for hook in self.after.get(at, ()):
            hook(args, result)
        if at == self.store:
            self._keep()
        if self.stop is not None and at >= self.stop:
            raise _Stop
        return result

    def _skipped(self, at: int, op: Op, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What an operator before the start gives: stored activations, or memory that nothing will read."""
        skip = self.program.skips[at]
        if skip is None:
            return op.func(*args, **keywords)
        if skip >= 0:
            return args[skip]
        results = []
        for ref, (shape, stride, dtype, device) in zip(op.outputs, self.batch.specs[at], strict=True):
            if ref.index in self.batch.kept:
                results.append(self.batch.kept[ref.index][1].to(device, dtype, copy=True))
            else:
                made = torch.empty_strided(shape, stride, dtype=dtype, device=device)
                results.append(made if dtype.is_floating_point else made.zero_())
        if len(op.func._schema.returns) > 1:
            return tuple(results)
        return results if isinstance(op.func._schema.returns[0].type, torch.ListType) else results[0]

    def _keep(self) -> None:
        kept = {}
        for memory, writer in self.wanted.items():
            before = self.batch.kept.get(memory)
            if before is not None and before[0] == writer:
                kept[memory] = before
                continue
            tensor = self.held[memory].detach()
            smaller = self.replay.half and tensor.dtype == torch.float32 and float(tensor.abs().max()) < _LARGEST_HALF
            kept[memory] = writer, tensor.to("cpu", torch.float16 if smaller else tensor.dtype, copy=True)
        assert self.store is not None
        self.batch.kept, self.batch.at = kept, self.store


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
