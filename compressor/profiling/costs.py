"""What a network costs by the operators that run, layer by layer, and thop's figure: the convention of several papers.

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

from compressor.errors import ModelError, cause
from compressor.graph.groups import batch_of
from compressor.graph.held import tensors_in, with_tensors
from compressor.graph.lives import lives
from compressor.graph.neutral import bare, neutrally
from compressor.graph.skeleton import Replica
from compressor.graph.trace import ModuleCall, Op, TensorRef, Trace, Way, alike, call_arguments, trace
from compressor.report.measurements import LayerCost, Profile, Shapes


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


def params_of(module: nn.Module) -> int:
    """Parameters of a module, those that stand in several places once."""
    return sum(parameter.numel() for parameter in module.parameters())


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


def peak_activation_bytes(trace: Trace) -> int:
    """The most bytes of activations that live at once, for the batch that was traced.

    An operator's own scratch space is not counted, and nothing is fused: a floor for a runtime that executes these
    operators in this order, one after the other.
    """
    changes = [0] * (len(trace.ops) + 2)
    for life in lives(trace):
        changes[life.born] += life.bytes
        changes[life.last + 1] -= life.bytes
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak


@neutrally
def profile(module: nn.Module, example: Any, *, layers: bool = True) -> Profile:
    """Multiply-adds, parameters, and peak activation memory of a model; the model is untouched.

    Args:
        example: a tensor with the batch first, such as (1, 3, 224, 224), or a tuple or dict of them; costs are for
            one image, whatever the batch.
        layers: also list the cost of every layer; the sums over the list are the totals.

    Raises:
        ModelError: the model does not run on the example.
    """
    module = bare(module)
    image, traced, batch = _trace_one(module, example)
    counted = count_macs(traced)
    unbatched = batch == 1 and _firsts(image) not in ({1}, set()) and len(_firsts(image)) == 1
    thop, reason = (None, "thop counts images in batches only") if unbatched else thop_macs(module, image)
    missed = left_out(module, counted.by_module)
    if thop is not None and missed:
        known = missed < counted.total
        reason = f"thop leaves out {missed / counted.total:.1%} of the MACs: what runs in no layer that it knows"
        thop, reason = (thop, reason) if known else (None, "thop knows none of this model's layers")
    reasons = {"file_bytes": "a model in memory has no file", "latency_ms": "not asked for"}
    if reason is not None:
        reasons["macs_thop"] = reason
    if counted.varying:
        share = counted.varying / counted.total
        reasons["macs"] = f"{share:.1%} of them depend on how much the network finds in the example, such as boxes"
    macs = {name: round(count / batch) for name, count in counted.by_module.items()}
    return Profile(
        macs=sum(macs.values()),
        macs_thop=None if thop is None else round(thop / batch),
        params=params_of(module),
        layers=tuple(_layers(module, traced, macs)) if layers else (),
        uncounted=counted.uncounted,
        activation_bytes=peak_activation_bytes(traced) // batch,
        reasons=reasons,
    )


def _trace_one(module: nn.Module, example: Any) -> tuple[Any, Trace, int]:
    """The example cut to one image, its trace and its batch size; a model that needs its batch keeps it."""
    if len(_firsts(example)) != 1 or _firsts(example) == {1}:
        return example, trace(module, example), 1
    image = with_tensors(example, lambda tensor: tensor[:1] if tensor.dim() else tensor)
    try:
        return image, trace(module, image), 1
    except ModelError:  # such as one that squeezes the batch away; its costs are divided instead
        traced = trace(module, example)
        return example, traced, batch_of(traced)


def _firsts(example: Any) -> set[int]:
    """The first sizes of an example's tensors."""
    return {len(tensor) for tensor in tensors_in(example) if tensor.dim()}


def _layers(module: nn.Module, traced: Trace, macs: dict[str, int]) -> Iterator[LayerCost]:
    """A row for every module that ran without modules inside, and for every other one with a cost of its own."""
    first: dict[str, ModuleCall] = {}
    for call in sorted(traced.calls, key=lambda call: (call.start, -call.end)):
        first.setdefault(call.module, call)
    modules = dict(module.named_modules())
    params = _own_params(module)
    order = [*first, *(name for name in modules if name not in first)]
    for name in order:
        inner = any(True for _ in modules[name].children())
        if not (params[name] or macs.get(name)) and (inner or name not in first):
            continue
        yield LayerCost(
            name=name or "(model)",
            kind=type(modules[name]).__name__,
            input_shapes=_shapes(first[name].inputs) if name in first else (),
            output_shapes=_shapes(first[name].outputs) if name in first else (),
            macs=macs.get(name, 0),
            params=params[name],
        )


def _own_params(module: nn.Module) -> Counter[str]:
    seen: set[int] = set()
    own: Counter[str] = Counter()
    for name, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                own[name] += parameter.numel()
    return own


def _shapes(refs: tuple[TensorRef, ...]) -> Shapes:
    return tuple(ref.shape for ref in refs)
