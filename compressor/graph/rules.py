"""The table of rules, operator name to function, with the element-wise operators and those that run along dimensions.

An operator that is neither here nor marked element-wise by torch is tried on data: see `batched`.
"""

import torch

from compressor.graph.batched import by_trial
from compressor.graph.channels import Ids
from compressor.graph.rules_layers import LAYERS
from compressor.graph.rules_parts import PARTS
from compressor.graph.rules_shapes import SHAPES, like
from compressor.graph.trace import Op, TensorRef
from compressor.graph.walk import Rule, Track, Walk, argument, untracked, where, without


def rule_of(op: Op) -> Rule:
    if op.func.namespace == "aten":
        if op.name in RULES:
            return RULES[op.name]
        if torch.Tag.pointwise in op.func.tags:
            return elementwise
        if torch.Tag.nondeterministic_seeded in op.func.tags:  # drawn, by numbers that stand in tensors
            return elementwise if len(op.inputs) > 1 else like
    return by_trial


def elementwise(w: Walk, op: Op) -> None:
    """Operands broadcast against each other; those with channels on one dimension are tied along it."""
    for out in op.outputs:
        rank = len(out.shape)
        track: Track = {}
        for dim in range(rank):
            operands = [_operand(w, ref, dim - rank) for ref in op.inputs if len(ref.shape) >= rank - dim]
            ids = w.join(operands, untracked(op))
            if ids is not None and out.shape[dim] == len(ids):
                track[dim] = ids
        w.give(out, track)


def _operand(w: Walk, ref: TensorRef, dim: int) -> tuple[Ids | None, int]:
    return w.held(ref, dim + len(ref.shape))


def along(w: Walk, op: Op) -> None:
    """softmax, cumsum, sort, roll, fft (x, dim or dims, ...): channels that they run over are frozen."""
    for ids in _over(w, op):
        w.freeze(ids, f"{op.name} in {where(op)} runs over channels")


def statistic(w: Walk, op: Op) -> None:
    """mean, sum, amax, var ... (x, dim or dims, ...): run over channels, they rule merging and inserting out.

    Where max and min tell the number of a channel, too, and somebody asks for it, channels are frozen.
    """
    if len(op.outputs) == 2 and op.name in ("max", "min") and w.is_used(op.outputs[1]):
        along(w, op)
        return
    for ids in _over(w, op):
        w.prune_only(ids, f"{op.name} in {where(op)} runs over channels")


def _over(w: Walk, op: Op) -> list[Ids]:
    """Hand on what an operator leaves alone; returns the identities of the dimensions that it runs over."""
    x, rank = op.inputs[0], len(op.inputs[0].shape)
    given = argument(op, "dim", "dims")
    dims = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
    over = {dim % rank for dim in dims} if rank else set()
    for out in op.outputs:
        kept = w.track(x) if len(out.shape) == rank else without(w.track(x), over)
        w.give(out, {dim: ids for dim, ids in kept.items() if dim < len(out.shape) and out.shape[dim] == len(ids)})
    return [ids for dim, ids in w.track(x).items() if dim in over]


def _words(text: str) -> list[str]:
    return text.split()


_ELEMENTWISE = _words("""
    relu relu6 leaky_relu prelu _prelu_kernel hardtanh hardswish hardsigmoid silu gelu elu celu selu mish
    sigmoid tanh softplus softsign hardshrink softshrink threshold add sub rsub mul div pow sqrt rsqrt exp log abs neg
    clamp clamp_min clamp_max where masked_fill copy erf sin cos sign reciprocal maximum minimum square rrelu
    rrelu_with_noise log_sigmoid_forward lerp addcmul addcdiv floor ceil round eq ne lt le gt ge logical_not
    bitwise_not logical_and logical_or trunc fmod remainder expm1 log1p floor_divide complex polar angle
""")
_STATISTICS = _words("""
    mean sum amax amin max min aminmax var std var_mean std_mean norm linalg_vector_norm logsumexp prod
    any all nansum count_nonzero _is_all_true _is_any_true
""")
_ALONG = _words("""
    _softmax _log_softmax _safe_softmax softmax log_softmax cumsum cumprod logcumsumexp cummax cummin median nanmedian
    mode kthvalue topk sort argmax argmin multinomial flip roll rot90 _fft_r2c _fft_c2r _fft_c2c
""")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_STATISTICS, statistic),
    **dict.fromkeys(_ALONG, along),
    **LAYERS,
    **SHAPES,
    **PARTS,
}
