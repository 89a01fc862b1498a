"""Multiply-adds of a network by the operators that run, and thop's figure: the convention of several papers.

thop hangs hooks on modules of the classes it knows: it counts bias and batch norm too, and misses whatever is called
as a function.
"""

import contextlib
import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compressor.errors import cause
from compressor.graph.held import with_tensors
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Op, Trace, Way, alike, call_arguments, trace


@dataclass(frozen=True, slots=True)
class MacCount:
    """Multiply-adds of a trace, for the whole batch that was traced."""

    total: int
    by_module: dict[str, int]  # dotted name of the innermost module -> its own; modules without any are left out
    uncounted: dict[str, int]  # "namespace::operator" -> number of calls, for operators with no rule
    varying: int = 0  # of the total: on as many rows as values decide, such as the boxes that are left of all


def count_macs(trace: Trace) -> MacCount:
    """Add up what the table says of every operator of the trace."""
    by_module: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    found, varying = set[int](), 0  # tensors whose size values decide
    for op in trace.ops:
        varies = _varies(op, found)
        found.update(ref.index for ref in op.outputs if varies)
        if op.operator.macs is None:
            uncounted[f"{op.func.namespace}::{op.name}"] += 1
            continue
        for axes in op.operator.macs(op):
            macs = math.prod(axis if isinstance(axis, int) else axis[0].shape[axis[1]] for axis in axes)
            by_module[op.module] += macs
            varying += macs if varies else 0
    return MacCount(by_module.total(), dict(by_module), dict(uncounted), varying)


def _varies(op: Op, found: set[int]) -> bool:
    """Whether values decide on the size of what an operator gives, by itself or by that of what it reads.

    An index that holds numbers has a size of its own; what has the size of the first operand has it from there.
    """
    first, rest = op.inputs[:1], op.inputs[1:]
    if torch.Tag.dynamic_output_shape in op.func.tags:
        if not rest or any(ref.dtype in (torch.bool, torch.uint8) for ref in rest):
            return True
    elif first and all(ref.shape == first[0].shape for ref in op.outputs):
        rest = ()
    return any(ref.index in found for ref in (*first, *rest))


def macs_of(module: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of a module for one input of `shape` (without the batch), of the type of its parameters."""
    like = next(module.parameters(), torch.zeros(0))
    return count_macs(trace(module, torch.zeros(1, *shape, dtype=like.dtype, device=like.device))).total


def thop_macs(module: nn.Module, example: Any) -> tuple[int | None, str | None]:
    """thop's "MACs" for `example`, or None and the reason why there is no figure; never raises.

    Run on a copy, since thop leaves its buffers in the module when it fails; on shapes alone where the model allows.
    """
    arguments, keywords = call_arguments(example, module)
    if keywords:
        return None, "thop takes inputs by position only"
    weighted = [id(layer) for _, layer in module.named_modules(remove_duplicate=False) if layer._parameters]
    if len(weighted) > len(set(weighted)):
        return None, "a layer stands in several places of the network, and thop would count it once for each"
    reason = ""
    for real in (False, True):
        try:
            replica = Replica(module, real=real)
            with _silence(), alike(replica, Way(example)):
                return _run_thop(replica, arguments), None
        except Exception as error:  # thop and the user's own code may fail in any way
            reason = cause(error)
    return None, f"thop failed: {reason}"


def left_out(module: nn.Module, macs: Mapping[str, int]) -> int:
    """How many of a model's multiply-adds thop cannot see: those of operators in no layer of a class that it knows.

    `macs` are the exact ones by the name of the innermost module.
    """
    with _silence():
        from thop.profile import register_hooks
    layers = dict(module.named_modules(remove_duplicate=False))
    return sum(count for name, count in macs.items() if type(layers[name]) not in register_hooks)


def _run_thop(replica: Replica, arguments: tuple[Any, ...]) -> int:
    import thop

    inputs = with_tensors(arguments, lambda tensor: tensor.detach().to(replica.device))
    macs, _ = thop.profile(replica.model, inputs=inputs, verbose=False)
    return round(float(macs))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """thop prints, logs and warns about its own age; nothing of it concerns the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
