"""Run a network between two of its operators on stored activations, again and again.

A pass over layers that are changed one after another would run the network from its start for each of them. Here the
tensors that are alive between two operators are stored for every batch, and later passes start from them: the model's
own code runs from its first line, but up to that place its operators compute nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph.outline import is_reserve
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Op, Way, alike, call_arguments, refused, run
from compressor.pruning.reconstruction.calibration import first_images
from compressor.pruning.reconstruction.program import START, Program

Hook = Callable[[Sequence[Any], Any], None]  # arguments of an operator and, after it ran, what it gave
Hooks = Mapping[int, Sequence[Hook]]  # by operator
_LARGEST_HALF = 6e4


class DivergedError(ModelError):
    """The network ran other operators than in its trace."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"the network runs other operators on some images than on others ({what}), so its layers cannot be "
            "followed: choose channels by weights alone, method l1 and allocate uniform"
        )


@dataclass
class _Batch:
    """One batch, and what is stored of the last pass over it."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    specs: dict[int, list[tuple[Any, ...]]]  # of an operator: shapes, strides and types of what it gives
    at: int = START
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
