"""The cost of a model: one walk over its trace, drawn up by layer."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from compressor.errors import ModelError
from compressor.graph.groups import batch_of
from compressor.graph.held import tensors_in, with_tensors
from compressor.graph.lives import lives
from compressor.graph.neutral import bare, neutrally
from compressor.graph.trace import ModuleCall, TensorRef, Trace, trace
from compressor.profiling.macs import count_macs, left_out, thop_macs
from compressor.report.measurements import LayerCost, Profile, Shapes


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
        params=sum(parameter.numel() for parameter in module.parameters()),
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
