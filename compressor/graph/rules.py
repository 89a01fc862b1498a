"""Rules for element-wise operators and for those that run along dimensions."""

from compressor.graph.channels import Ids
from compressor.graph.propagate import Propagation, Track, untracked, where, without
from compressor.graph.records import Op, argument
from compressor.graph.rules_shapes import like


def elementwise(w: Propagation, op: Op) -> None:
    """Operands broadcast against each other; those with channels on one dimension are tied along it."""
    for out in op.outputs:
        rank = len(out.shape)
        track: Track = {}
        reached = {rank - len(ref.shape) + dim for ref in op.inputs for dim in w.track(ref)}
        for dim in sorted(reached):
            aligned = ((ref, dim - rank + len(ref.shape)) for ref in op.inputs)
            operands = [w.held(ref, at) for ref, at in aligned if at >= 0]
            ids = w.join(operands, untracked(op))
            if ids is not None and out.shape[dim] == len(ids):
                track[dim] = ids
        w.bind(out, track)


def drawn(w: Propagation, op: Op) -> None:
    """normal, uniform, poisson ...: random numbers, perhaps about those that stand in several tensors."""
    (elementwise if len(op.inputs) > 1 else like)(w, op)


def along(w: Propagation, op: Op) -> None:
    """softmax, cumsum, sort, roll, fft (x, dim or dims, ...): channels that they run over are frozen."""
    for ids in _over(w, op):
        w.freeze(ids, f"{op.name} in {where(op)} runs over channels")


def statistic(w: Propagation, op: Op) -> None:
    """mean, sum, amax, var ... (x, dim or dims, ...): run over channels, they rule merging and inserting out."""
    for ids in _over(w, op):
        w.prune_only(ids, f"{op.name} in {where(op)} runs over channels")


def extreme(w: Propagation, op: Op) -> None:
    """max, min: where they tell the number of a channel, too, and somebody asks for it, channels are frozen."""
    numbered = len(op.outputs) == 2 and w.is_used(op.outputs[1])
    (along if numbered else statistic)(w, op)


def _over(w: Propagation, op: Op) -> list[Ids]:
    """Hand on what an operator leaves alone; returns the identities of the dimensions that it runs over."""
    x, rank = op.inputs[0], len(op.inputs[0].shape)
    given = argument(op, "dim", "dims")
    dims = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
    over = {dim % rank for dim in dims} if rank else set()
    for out in op.outputs:
        kept = w.track(x) if len(out.shape) == rank else without(w.track(x), over)
        w.bind(out, {dim: ids for dim, ids in kept.items() if dim < len(out.shape) and out.shape[dim] == len(ids)})
    return [ids for dim, ids in w.track(x).items() if dim in over]
