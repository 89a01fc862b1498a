"""The table of rules, operator name to function, with the element-wise operators and the reductions.

An operator that is neither here nor marked element-wise by torch freezes the channels that reach it.
"""

from compressor.graph.channels import Ids
from compressor.graph.rules_layers import LAYERS
from compressor.graph.rules_parts import PARTS
from compressor.graph.rules_shapes import SHAPES
from compressor.graph.trace import Op, TensorRef
from compressor.graph.walk import Rule, Track, Walk


def elementwise(w: Walk, op: Op) -> None:
    """Operands broadcast against each other; those with channels on one dimension are tied along it."""
    reason = f"{op.name} in {op.module or 'the model'} joins it with something that is not tracked"
    for out in op.outputs:
        rank = len(out.shape)
        track: Track = {}
        for dim in range(rank):
            operands = [_operand(w, ref, dim - rank) for ref in op.inputs if len(ref.shape) >= rank - dim]
            ids = w.join(operands, reason)
            if ids is not None and out.shape[dim] == len(ids):
                track[dim] = ids
        w.give(out, track)


def _operand(w: Walk, ref: TensorRef, dim: int) -> tuple[Ids | None, int]:
    return w.held(ref, dim + len(ref.shape))


def reduction(w: Walk, op: Op) -> None:
    """mean, sum, amax, var ... (x, dims, ..., keepdim): run over channels, they rule merging and inserting out."""
    x, out = op.args[0], op.outputs[0]
    rank = len(x.shape)
    position = 2 if op.name == "linalg_vector_norm" or (op.name == "norm" and len(op.args) > 1) else 1
    given = op.args[position] if len(op.args) > position else op.kwargs.get("dim")
    dims = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {dim % rank for dim in dims} if rank else set()
    for dim in gone & w.track(x).keys():
        w.prune_only(w.track(x)[dim], f"{op.name} in {op.module or 'the model'} runs over channels")
    kept = {dim: ids for dim, ids in w.track(x).items() if dim not in gone}
    if len(out.shape) != rank:
        kept = {dim - sum(g < dim for g in gone): ids for dim, ids in kept.items()}
    for ref in op.outputs:
        w.give(ref, kept)


def _words(text: str) -> list[str]:
    return text.split()


_ELEMENTWISE = _words("""
    relu relu6 leaky_relu prelu _prelu_kernel hardtanh hardswish hardsigmoid silu gelu elu celu selu mish
    sigmoid tanh softplus softsign hardshrink softshrink threshold add sub rsub mul div pow sqrt rsqrt exp log abs neg
    clamp clamp_min clamp_max where masked_fill copy erf sin cos sign reciprocal maximum minimum square rrelu
    rrelu_with_noise log_sigmoid_forward lerp addcmul addcdiv floor ceil round eq ne lt le gt ge logical_not
    bitwise_not logical_and logical_or trunc fmod remainder expm1 log1p floor_divide complex polar angle
""")
_REDUCTIONS = _words("""
    mean sum amax amin max min var std var_mean std_mean norm linalg_vector_norm logsumexp prod argmax
    argmin any all nansum
""")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **LAYERS,
    **SHAPES,
    **PARTS,
}
