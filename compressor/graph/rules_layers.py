"""Rules for operators with weights: convolutions, matrix products, normalisation, attention."""

import math
from collections.abc import Mapping

import numpy as np

from compressor.graph.channels import Ids
from compressor.graph.propagate import Propagation, Track, untracked, where
from compressor.graph.records import Axis, Op, TensorRef

KERNEL = "kernel size"


def convolution(w: Propagation, op: Op) -> None:
    """(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    weight, bias, transposed, groups = op.args[1], op.args[2], op.args[6], op.args[8]
    for ref in {weight, *w.sources(weight)}:
        if len(ref.shape) == len(weight.shape):
            w.freeze_all((ids for dim, ids in w.track(ref).items() if dim > 1), KERNEL)
    track = _beside(w, op)
    out = _grouped(w, op, groups, transposed) if groups > 1 else _dense(w, op, transposed)
    if bias is not None:
        out = w.join(((out, op.outputs[0].shape[1]), w.held(bias, 0)), untracked(op))
    w.bind(op.outputs[0], track if out is None else track | {1: out})


def _beside(w: Propagation, op: Op) -> Track:
    """What the images of the batch and, under a kernel of one position, the pixels hold is left alone."""
    x, weight, stride, padding, transposed = op.args[0], op.args[1], op.args[3], op.args[4], op.args[6]
    alone = math.prod(weight.shape[2:]) == 1 and set(stride) == {1} and set(padding) == {0} and not transposed
    track = {dim: ids for dim, ids in w.track(x).items() if dim == 0 or (dim > 1 and alone)}
    mixed = (ids for dim, ids in w.track(x).items() if dim != 1 and dim not in track)
    w.freeze_all(mixed, f"{where(op)} convolves over channels")
    return track


def _dense(w: Propagation, op: Op, transposed: bool) -> Ids | None:
    x, weight = op.args[0], op.args[1]
    reads, makes = (0, 1) if transposed else (1, 0)
    w.contract((x, 1), (weight, reads), op)
    out = w.track(weight).get(makes)
    w.size(op, in_channels=w.track(x).get(1), out_channels=out)
    return out


def _grouped(w: Propagation, op: Op, groups: int, transposed: bool) -> Ids | None:
    x, weight = op.args[0], op.args[1]
    ids, rows, columns = w.track(x).get(1), w.track(weight).get(0), w.track(weight).get(1)
    alone = f"{where(op)} has groups and an input or a weight that is not tracked"
    multiplicity = op.outputs[0].shape[1] // groups
    if x.shape[1] == groups:  # depthwise: a channel keeps its own filters, in the whole network
        spread = ids if ids is None or transposed or multiplicity == 1 else ids.repeat(multiplicity)
        rows = w.join(((spread, 2), (rows, 2)), alone)
        w.freeze(columns, "depth multiplier of a transposed convolution")
        out = rows.repeat(multiplicity) if transposed and rows is not None else rows
        w.size(op, in_channels=ids, out_channels=out, groups=ids)
        return out
    if ids is None or rows is None:
        w.freeze_all((a for a in (ids, rows, columns) if a is not None), alone)
        return None
    inner = w.tie_rows(ids.reshape(groups, -1))
    if transposed:
        w.contract((x, 1), (weight, 0), op)
        out = None if columns is None else np.tile(columns, groups)
    else:
        if columns is not None:
            w.tie(inner, columns)
            w.ties.columns.append(columns)
        w.tie_rows(rows.reshape(groups, -1))
        out = rows
    w.size(op, in_channels=ids, out_channels=out)
    return out


def convolution_macs(op: Op) -> list[list[Axis]]:
    """Each position of the output gathers, or (transposed) each of the input scatters, one kernel over a group."""
    weight, positions = op.args[1], op.args[0] if op.args[6] else op.outputs[0]
    beside = [(positions, dim) for dim in range(len(positions.shape)) if dim != 1]
    return [[math.prod(weight.shape[2:]), *beside, (weight, 0), (weight, 1)]]


class Contraction:
    """The rule and the cost of a product, by its axes: "n m, n k, k m -> n m" adds n x m to n x k times k x m.

    A letter that operands share ties them, one that the result lacks is summed over, `*` is any number of axes; the
    multiply-adds are the product of all letters. Operands broadcast from the right.
    """

    def __init__(self, signature: str, sizes: Mapping[str, str]) -> None:
        """`sizes` are attributes of the module that count a letter's channels."""
        self._sizes = sizes
        operands, _, result = signature.partition("->")
        self._operands, self._result = [each.split() for each in operands.split(",")], result.split()
        letters = dict.fromkeys(letter for each in self._operands for letter in each)
        self._summed = [letter for letter in letters if letter not in self._result]

    def _places(self, op: Op) -> dict[str, list[tuple[TensorRef, int]]]:
        """Where each letter stands; what is multiplied comes before what is added."""
        given = [(letters, ref) for letters, ref in zip(self._operands, op.args, strict=False) if ref is not None]
        found: dict[str, list[tuple[TensorRef, int]]] = {}
        for letters, ref in sorted(given, key=lambda pair: set(self._summed).isdisjoint(pair[0])):
            for dim, letter in enumerate(_spelt(letters, len(ref.shape))):
                found.setdefault(letter, []).append((ref, dim))
        return found

    def macs(self, op: Op) -> list[list[Axis]]:
        return [[places[0] for places in self._places(op).values()]]

    def rule(self, w: Propagation, op: Op) -> None:
        places, out = self._places(op), op.outputs[0]
        for letter in self._summed:
            one, other = places[letter]
            w.contract(one, other, op)
        known = {letter: w.held(*each[0])[0] for letter, each in places.items()}
        result = _spelt(self._result, len(out.shape))
        for letter in result:
            held = [w.held(*place) for place in places[letter]]
            if len(held) > 1 and held[0][1] > 1:
                known[letter] = w.join(held, untracked(op))
        w.bind(out, {dim: ids for dim, letter in enumerate(result) if (ids := known[letter]) is not None})
        w.size(op, **{attribute: known[letter] for attribute, letter in self._sizes.items()})


def _spelt(letters: list[str], rank: int) -> list[str]:
    """A letter for each of a tensor's axes."""
    if letters[:1] == ["*"]:
        return [f"*{dim}" for dim in range(rank - len(letters) + 1)] + letters[1:]
    return letters[len(letters) - rank :]


def batch_norm(w: Propagation, op: Op) -> None:
    """(x, weight, bias, running_mean, running_var, ...): the first tensors of the arguments, per channel."""
    x, *vectors = [arg for arg in op.args[:5] if isinstance(arg, TensorRef)]
    ids = w.join(
        [(w.track(x).get(1), x.shape[1])] + [(w.track(v).get(0), v.shape[0]) for v in vectors],
        f"{where(op)} normalises channels that are not tracked",
    )
    rest = {dim: other for dim, other in w.track(x).items() if dim != 1}
    for other in rest.values():
        w.prune_only(other, f"{where(op)} takes its statistics over these channels")
    w.bind(op.outputs[0], rest if ids is None else rest | {1: ids})
    for ref in op.outputs[1:]:  # the batch's statistics
        w.bind(ref, {0: ids} if ids is not None and ref.shape == (len(ids),) else {})
    w.size(op, num_features=ids)


def layer_norm(w: Propagation, op: Op) -> None:
    """(x, normalized_shape, weight, bias, eps) and rms_norm: statistics over the last dimensions."""
    x, shape = op.args[0], op.args[1]
    vectors = [arg for arg in op.args[2:] if isinstance(arg, TensorRef)]
    first = len(x.shape) - len(shape)
    track = dict(w.track(x))
    for offset, size in enumerate(shape):
        dim = first + offset
        ids = w.join([(track.get(dim), size), *(w.held(v, offset) for v in vectors)], untracked(op))
        if ids is not None:
            track[dim] = ids
            w.prune_only(ids, f"{where(op)} normalises across channels")
            w.size(op, **{f"normalized_shape.{offset}": ids})
    w.bind(op.outputs[0], track)
    for ref in op.outputs[1:]:  # the statistics
        w.bind(ref, {dim: ids for dim, ids in track.items() if dim < first})


def group_norm(w: Propagation, op: Op) -> None:
    """native_group_norm (x, weight, bias, N, C, HxW, groups, eps): statistics over the channels of each group."""
    x, groups = op.args[0], op.args[6]
    vectors = [arg for arg in op.args[1:3] if isinstance(arg, TensorRef)]
    ids = w.join([w.held(x, 1), *(w.held(v, 0) for v in vectors)], untracked(op))
    track = dict(w.track(x))
    for dim in track.keys() - {0, 1}:
        w.prune_only(track[dim], f"{where(op)} takes its statistics over these channels")
    kept = {0: track[0]} if 0 in track else {}
    if ids is not None:
        track[1] = ids
        w.size(op, num_channels=ids)
        if groups == len(ids):
            w.size(op, num_groups=ids)
            kept[1] = ids
        else:
            w.tie_rows(ids.reshape(groups, -1))
            w.prune_only(ids, f"{where(op)} normalises across channels")
    w.bind(op.outputs[0], track)
    for ref in op.outputs[1:]:  # the statistics, (N, groups)
        w.bind(ref, kept)


def weight_norm(w: Propagation, op: Op) -> None:
    """_weight_norm_interface (v, g, dim): v rescaled to the length g along every dimension but one."""
    v, g, kept = op.args[0], op.args[1], op.args[2] if len(op.args) > 2 else 0
    track = dict(w.track(v))
    w.join(((track.get(kept), v.shape[kept]), (w.track(g).get(kept), g.shape[kept])), untracked(op))
    for dim, ids in track.items():
        if dim != kept:
            w.prune_only(ids, f"{where(op)} takes the length of its weight over these channels")
    w.bind(op.outputs[0], track)
    w.bind(op.outputs[1], {kept: track[kept]} if kept in track else {})


def attention(w: Propagation, op: Op) -> None:
    """Scaled dot product attention (query, key, value, ...): (batch, heads, tokens, features) each."""
    q, k, v = op.args[:3]
    rank = len(q.shape)
    w.contract((q, rank - 1), (k, rank - 1), op)
    if op.kwargs.get("scale") is None:
        for ref in (q, k):
            w.freeze(w.track(ref).get(rank - 1), "attention divides by the root of their number")
    beside = w.joined((q, k, v), range(rank - 2), op)
    for ref in (k, v):
        w.freeze(w.track(ref).get(rank - 2), f"{where(op)} attends to channels")
    for ref in op.inputs[3:]:
        w.freeze_all(w.track(ref).values(), f"{where(op)} adds it to the scores of its attention")
    given = {**beside, rank - 2: w.track(q).get(rank - 2), rank - 1: w.track(v).get(rank - 1)}
    for ref in op.outputs:  # behind the result the sums of the scores
        held = {dim: ids for dim, ids in given.items() if ids is not None and dim < len(ref.shape)}
        w.bind(ref, {dim: ids for dim, ids in held.items() if len(ids) == ref.shape[dim]})


def attention_macs(op: Op) -> list[list[Axis]]:
    """Queries times keys, and what comes of it times values."""
    q, k, v = op.args[:3]
    last = len(q.shape) - 1
    rows = [(q, dim) for dim in range(last)]
    return [[*rows, (k, last - 1), (ref, last)] for ref in (q, v)]


def embedding(w: Propagation, op: Op) -> None:
    """(weight, indices): rows of a table."""
    weight, indices = op.args[0], op.args[1]
    w.freeze(w.track(weight).get(0), "entries of an embedding")
    ids = w.track(weight).get(1)
    w.bind(op.outputs[0], w.track(indices) | ({} if ids is None else {len(indices.shape): ids}))


def embedding_bag(w: Propagation, op: Op) -> None:
    """(weight, indices, offsets, ...): sums, means or maxima over rows of a table, with their numbers behind it."""
    weight = op.args[0]
    w.freeze(w.track(weight).get(0), "entries of an embedding")
    ids = w.track(weight).get(1)
    for ref in op.outputs:
        w.bind(ref, {1: ids} if ids is not None and ref.shape[1:] == (len(ids),) else {})
