"""The operators of a run by the memory that they read and write: what has to be kept for a later part of it."""

import bisect
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves

from compressor.graph.trace import Op, TensorRef, Trace

START = -1  # before the first operator


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
        return self._makers.get(ref.index, START)

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
            first, last = self._writers[memory][0], self._last.get(memory, START)
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
            if writers[0] <= at < self._last.get(memory, START):
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
