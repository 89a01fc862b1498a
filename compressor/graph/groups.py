"""Turn the ties that propagation found into a map: one identity per channel, groups, and why some are frozen."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from compressor.graph.attributes import value_at
from compressor.graph.channels import SINGLE, Absorber, Cost, Group, Held, Ids, Key, Place, Site, Size, owner
from compressor.graph.lives import lives
from compressor.graph.propagate import Propagation, RawSize
from compressor.graph.records import Trace
from compressor.graph.rules_layers import KERNEL
from compressor.graph.rules_shapes import permute
from compressor.graph.unions import Unions

Roots = NDArray[np.int64]


def roots_of(ties: Unions) -> Roots:
    """For every raw identity, the number of the set it was tied into."""
    return connected(ties.pairs, ties.count)


def connected(pairs: list[tuple[Ids, Ids]], count: int) -> Roots:
    """The number of each identity's set, when the identities of each pair of arrays belong together."""
    if not pairs:
        return np.arange(count, dtype=np.int64)
    ones, others = (np.concatenate(side) for side in zip(*pairs, strict=True))
    links = coo_matrix((np.ones(len(ones), dtype=bool), (ones, others)), shape=(count, count))
    labels: Roots = connected_components(links, directed=False)[1].astype(np.int64)
    return labels


class Numbered:
    """Arrays of raw identities in final ones; equal arrays are one object, so that what follows meets each once."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self.count = int(roots.max(initial=-1)) + 1
        self._by_content: dict[bytes, Ids] = {}
        self._by_object: dict[int, tuple[Ids, Ids]] = {}  # the raw array is kept, lest another takes its number

    def __call__(self, raw: Ids) -> Ids:
        known = self._by_object.get(id(raw))
        if known is None:
            ids = self.roots[raw]
            known = self._by_object[id(raw)] = raw, self._by_content.setdefault(ids.tobytes(), ids)
        return known[1]


class Reasons:
    """The first reason given for each identity, of those that may not be edited (or only pruned)."""

    def __init__(self, marks: Iterable[tuple[Ids, str]], numbered: Numbered) -> None:
        self._texts: list[str] = []
        self._first = np.full(numbered.count, -1, dtype=np.int64)
        for ids, text in marks:
            mine = numbered(ids)
            self._first[mine[self._first[mine] < 0]] = len(self._texts)
            self._texts.append(text)

    def of(self, identity: int) -> str | None:
        return self._texts[self._first[identity]] if self._first[identity] >= 0 else None

    @property
    def marked(self) -> NDArray[np.bool_]:
        return self._first >= 0


def identities(ties: Unions, numbered: Numbered) -> dict[Key, Ids]:
    return {key: numbered(ids) for key, ids in ties.blocks.items()}


def grouped(
    ties: Unions, numbered: Numbered, ranks: Mapping[str, int], tensor_order: Mapping[str, int]
) -> tuple[Group, ...]:
    """Channels with the same places, in the order in which the network first makes them.

    `ranks` holds the number of dimensions of each tensor: a vector does not make channels, a weight does.
    """
    keys = sorted(ties.blocks, key=lambda key: (tensor_order[key[0]], key[1]))
    held = {key: numbered(ties.blocks[key]) for key in keys}
    roles = _roles(ties)
    places = {key: Place(*key, "row" if "row" in roles[key] else "column") for key in keys}
    families = _families(held, [numbered(ids) for ids in ties.apart], numbered.count)
    frozen = Reasons(ties.frozen, numbered)
    both = ((ties.blocks[key], BOTH_WAYS) for key, roles_of in roles.items() if len(roles_of) > 1)
    prune_only = Reasons((*ties.prune_only, *both), numbered)
    kernels = Reasons(((ids, text) for ids, text in ties.frozen if text == KERNEL), numbered)
    found = []
    taken: dict[str, int] = {}
    for ids, family_keys in families:
        mine = tuple(places[key] for key in family_keys)
        producers = _producers(mine, ranks)
        reason = frozen.of(int(ids[0])) or _unfit(ids)
        if not producers or kernels.of(int(ids[0])) is not None:  # nothing an edit could be about
            continue
        name = producers[0]
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
        found.append(Group(unique, ids, mine, producers, reason, prune_only.of(int(ids[0]))))
    return tuple(found)


BOTH_WAYS = "a weight both makes and reads them"


def _roles(ties: Unions) -> dict[Key, tuple[str, ...]]:
    """Whether a weight makes the channels on a dimension, reads them, or both."""
    links = connected(ties.aliases, ties.count)  # of a computed weight, the parameters it comes from
    columns, rows = (_marked(arrays, links) for arrays in (ties.columns, ties.rows))
    found: dict[Key, tuple[str, ...]] = {}
    for key, ids in ties.blocks.items():
        linked = links[ids]
        read = bool(columns[linked].any())
        made = not read or bool(rows[linked].any())
        found[key] = ("row",) * made + ("column",) * read
    return found


def _marked(arrays: Iterable[Ids], links: Roots) -> NDArray[np.bool_]:
    marked = np.zeros(len(links), dtype=bool)
    for ids in arrays:
        marked[links[ids]] = True
    return marked


def _families(held: Mapping[Key, Ids], apart: list[Ids], count: int) -> list[tuple[Ids, list[Key]]]:
    """Identities that occur equally often in the same places, found by hashing; frozen and free ones never mix."""
    generator = np.random.default_rng(0)
    signatures = np.zeros(count, dtype=np.uint64)
    nothing = np.zeros(0, dtype=np.int64)
    arrays = [nothing, *held.values(), *map(np.unique, apart)]
    marks = generator.integers(1, 2**63, size=len(arrays), dtype=np.uint64)  # a number of each place, added up
    np.add.at(signatures, np.concatenate(arrays), np.repeat(marks, [*map(len, arrays)]))
    every = np.concatenate([nothing, *held.values()])
    first = np.full(count, -1, dtype=np.int64)
    first[every[::-1]] = np.arange(len(every))[::-1]
    seen = np.flatnonzero(first >= 0)
    seen = seen[np.argsort(first[seen], kind="stable")]
    _, inverse = np.unique(signatures[seen], return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    runs = np.split(seen[order], np.flatnonzero(np.diff(inverse[order])) + 1) if len(seen) else []
    runs.sort(key=lambda run: int(first[run[0]]))
    members: dict[int, list[Key]] = {int(run[0]): [] for run in runs}
    leads = np.zeros(count, dtype=bool)
    leads[list(members)] = True
    led = {id(ids): dict.fromkeys(ids[leads[ids]].tolist()) for ids in held.values()}
    for key, ids in held.items():
        for identity in led[id(ids)]:
            members[identity].append(key)
    return [(run, members[int(run[0])]) for run in runs]


def _producers(places: Iterable[Place], ranks: Mapping[str, int]) -> tuple[str, ...]:
    """The modules whose weights make the channels; where there are none, those whose vectors do (a learned state)."""
    made = [place.tensor for place in places if place.role == "row" and ranks[place.tensor] > 0]
    weights = [tensor for tensor in made if ranks[tensor] > 1]
    return tuple(dict.fromkeys(owner(tensor) for tensor in weights or made))


def _unfit(ids: Ids) -> str | None:
    return SINGLE if len(ids) == 1 else None


def sites(walk: Propagation, numbered: Numbered) -> tuple[Site, ...]:
    """Outputs of modules that hold channels on one dimension, in the order of execution."""
    found = []
    for order, call in enumerate(walk.trace.calls):
        for ref in call.outputs[:1]:
            ops = walk.trace.ops[call.start : call.end]
            plain = bool(ops) and all(op.operator.is_elementwise for op in ops)
            for dim, ids in walk.track(ref).items():
                found.append(Site(call.module, dim, numbered(ids), ref.shape, order, plain))
    return tuple(found)


def sizes(found: Iterable[RawSize], modules: Mapping[str, nn.Module], numbered: Numbered) -> tuple[Size, ...]:
    """The attributes that exist, can be written, and hold exactly the count they were said to hold."""
    kept: dict[tuple[str, str], Size] = {}
    for raw in found:
        value = value_at(modules.get(raw.module), raw.attribute)
        if type(value) is int and value == len(raw.ids):
            kept.setdefault((raw.module, raw.attribute), Size(raw.module, raw.attribute, numbered(raw.ids)))
    return tuple(kept.values())


def batch_of(trace: Trace) -> int:
    """How many images the first input holds: 1 where its first dimension is read by weights."""
    first = next((ref for ref in trace.inputs if ref.shape), None)
    if first is None or first.shape[0] == 1:
        return 1
    # torch gives an image without a batch a dimension of its own in front of the operator that wants one.
    alone = any(op.operator.kind == "convolution" and op.args[0].shape[0] == 1 for op in trace.ops)
    if len(first.shape) > 1 and not alone:
        return first.shape[0]
    ties = Unions()
    walk = Propagation(trace, ties)
    own = ties.fresh(first.shape[0])
    walk.bind(first, {0: own})
    walk.follow()
    roots = roots_of(ties)
    read = np.concatenate([roots[ids] for ids in ties.blocks.values()] or [roots[:0]])
    return 1 if np.isin(roots[own], read).any() else first.shape[0]


def costs(walk: Propagation, numbered: Numbered, batch: int) -> tuple[Cost, ...]:
    """Per image, where the operator's work is a multiple of the batch (a product of two weights is not)."""
    return tuple(Cost(c.module, *_per_image(c.factor, tuple(map(numbered, c.axes)), batch)) for c in walk.costs)


def held(walk: Propagation, numbered: Numbered, batch: int) -> tuple[Held, ...]:
    """Every activation, for one image."""
    found = []
    for life in lives(walk.trace):
        track = walk.track(life.ref)
        factor = life.ref.dtype.itemsize * math.prod(s for dim, s in enumerate(life.ref.shape) if dim not in track)
        found.append(Held(*_per_image(factor, tuple(map(numbered, track.values())), batch), life.born, life.last))
    return tuple(found)


def _per_image(factor: int, axes: tuple[Ids, ...], batch: int) -> tuple[int, tuple[Ids, ...]]:
    """The factor for one image; else of an axis that repeats its channels for every image the first image's."""
    if factor % batch == 0:
        return factor // batch, axes
    for place, axis in enumerate(axes):
        if len(axis) % batch == 0 and (axis.reshape(batch, -1) == axis[: len(axis) // batch]).all():
            return factor, (*axes[:place], axis[: len(axis) // batch], *axes[place + 1 :])
    return factor, axes


def absorbers(walk: Propagation) -> dict[str, Absorber]:
    """For every ungrouped layer, what takes up a shift of its output: its bias, else the batch norm that reads it."""
    names, made, found = walk.trace.parameters, {}, {}
    for op in walk.trace.ops:
        known = op.operator
        if known.kind == "convolution" and op.args[8] == 1 and op.args[1].index in names:
            made[op.outputs[0].index] = names[op.args[1].index]
            if op.args[2] is not None and op.args[2].index in names:
                found[names[op.args[1].index]] = Absorber("bias", names[op.args[2].index])
        elif known.rule is permute:
            made[op.outputs[0].index] = names.get(op.args[0].index, "")
        elif known.bias == 0 and made.get(op.args[2].index) and op.args[0].index in names:
            found[made[op.args[2].index]] = Absorber("bias", names[op.args[0].index])
        elif known.kind == "product" and known.bias is None and made.get(op.args[1].index):
            made[op.outputs[0].index] = made[op.args[1].index]
        elif known.kind == "batch norm" and made.get(op.args[0].index):
            mean = names.get(op.args[3].index) if op.args[3] is not None else None
            if mean is not None:  # else it is computed
                found.setdefault(made[op.args[0].index], Absorber("running_mean", mean))
    return found


def first_use(trace: Trace, tensors: dict[str, int]) -> dict[str, int]:
    """For every parameter, when the network first reads it: the order in which groups are named and listed."""
    order: dict[str, int] = {}
    for op in trace.ops:
        for ref in op.inputs:
            name = trace.parameters.get(ref.index)
            if name is not None:
                order.setdefault(name, len(order))
    return order | {name: len(order) + place for name, place in tensors.items() if name not in order}
