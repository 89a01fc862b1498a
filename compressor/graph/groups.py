"""Turn the ties that propagation found into a map: one identity per channel, groups, and why some are frozen."""

import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compressor.graph.attributes import value_at
from compressor.graph.channels import SINGLE, Absorber, Cost, Group, Held, Ids, Key, Place, Site, Size, owner
from compressor.graph.lives import lives
from compressor.graph.propagate import Propagation, RawSize
from compressor.graph.records import Trace
from compressor.graph.rules_layers import KERNEL
from compressor.graph.rules_shapes import permute
from compressor.graph.unions import Roots, Unions, connected, roots_of


class Numbered:
    """Arrays of raw identities in final ones; equal arrays are one object, so that what follows meets each once."""

    def __init__(self, roots: Roots, leads: Mapping[int, Ids] | None = None) -> None:
        self.roots = roots
        self._leads = leads or {}
        self.count = int(roots.max(initial=-1)) + 1
        self._by_content: dict[bytes, Ids] = {}
        self._by_object: dict[int, tuple[Ids, Ids]] = {}  # the raw array is kept, lest another takes its number

    def __call__(self, raw: Ids) -> Ids:
        known = self._by_object.get(id(raw))
        if known is None:
            lead = self._leads.get(id(raw), raw)
            known = self._by_object[id(raw)] = raw, self.only(self.roots[raw]) if lead is raw else self(lead)
        return known[1]

    def only(self, ids: Ids) -> Ids:
        """Of equal arrays of final identities the one that came up first."""
        return self._by_content.setdefault(ids.tobytes(), ids)


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
        reason = frozen.of(int(ids[0])) or (SINGLE if len(ids) == 1 else None)
        if not producers or kernels.of(int(ids[0])) is not None:  # nothing an edit could be about
            continue
        name = producers[0]
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
        found.append(Group(unique, numbered.only(ids), mine, producers, reason, prune_only.of(int(ids[0]))))
    return tuple(found)


BOTH_WAYS = "a weight both makes and reads them"


def _roles(ties: Unions) -> dict[Key, tuple[str, ...]]:
    """Whether a weight makes the channels on a dimension, reads them, or both."""
    links = connected(ties.aliases, ties.count) if ties.aliases else None  # of a computed weight, what it comes from
    bounds = [bound for ids in ties.blocks.values() for bound in (ids[0], ids[-1] + 1)]
    columns, rows = (_marked(arrays, links, ties.count) for arrays in (ties.columns, ties.rows))
    found: dict[Key, tuple[str, ...]] = {}
    for key, read, made in zip(ties.blocks, *(_any_between(bounds, marked) for marked in (columns, rows)), strict=True):
        found[key] = ("row",) * (made or not read) + ("column",) * read
    return found


def _marked(arrays: Iterable[Ids], links: Roots | None, count: int) -> NDArray[np.bool_]:
    """Whether each identity is in one of the arrays, or linked to one that is."""
    marked = np.zeros(count + 1, dtype=bool)  # with one behind the last
    marked[_joined(arrays)] = True
    if links is not None:
        linked = np.zeros(count, dtype=bool)
        linked[links[marked[:-1]]] = True
        marked[:-1] = linked[links]
    return marked


def _any_between(bounds: list[int], marked: NDArray[np.bool_]) -> list[bool]:
    """Whether any is marked from each first bound to the next."""
    return np.logical_or.reduceat(marked, bounds)[::2].tolist() if bounds else []


def _families(held: Mapping[Key, Ids], apart: list[Ids], count: int) -> list[tuple[Ids, list[Key]]]:
    """Identities that occur equally often in the same places, found by hashing; frozen and free ones never mix."""
    generator = np.random.default_rng(0)
    marks = generator.integers(1, 2**63, size=len(held) + len(apart)).tolist()  # a number of each place, added up
    arrays = {id(ids): ids for ids in held.values()}
    totals = dict.fromkeys(arrays, 0)
    for ids, mark in zip(held.values(), marks, strict=False):
        totals[id(ids)] += mark
    sums = np.array([*(total % 2**64 for total in totals.values()), *marks[len(held) :]], dtype=np.uint64)
    places = [*arrays.values(), *map(np.unique, apart)]
    signatures = np.zeros(count, dtype=np.uint64)
    np.add.at(signatures, _joined(places), np.repeat(sums, [*map(len, places)]))
    every = _joined(arrays.values())
    first = np.full(count, -1, dtype=np.int64)
    first[every[::-1]] = np.arange(len(every))[::-1]
    seen = every[first[every] == np.arange(len(every))]
    families: dict[int, list[Ids]] = {}
    marked = signatures[seen]
    for run in np.split(seen, np.flatnonzero(marked[1:] != marked[:-1]) + 1) if len(seen) else ():
        families.setdefault(int(signatures[run[0]]), []).append(run)
    runs = [_joined(family) for family in families.values()]
    members: dict[int, list[Key]] = {int(run[0]): [] for run in runs}
    leads = np.zeros(count, dtype=bool)
    leads[list(members)] = True
    led = {number: dict.fromkeys(ids[leads[ids]].tolist()) for number, ids in arrays.items()}
    for key, ids in held.items():
        for identity in led[id(ids)]:
            members[identity].append(key)
    return [(run, members[int(run[0])]) for run in runs]


def _joined(arrays: Iterable[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])


def _producers(places: Iterable[Place], ranks: Mapping[str, int]) -> tuple[str, ...]:
    """The modules whose weights make the channels; where there are none, those whose vectors do (a learned state)."""
    made = [place.tensor for place in places if place.role == "row" and ranks[place.tensor] > 0]
    weights = [tensor for tensor in made if ranks[tensor] > 1]
    return tuple(dict.fromkeys(owner(tensor) for tensor in weights or made))


def sites(walk: Propagation, numbered: Numbered) -> tuple[Site, ...]:
    """Outputs of modules that hold channels on one dimension, in the order of execution."""
    found = []
    mixed = [0, *itertools.accumulate(not op.operator.is_elementwise for op in walk.trace.ops)]
    for order, call in enumerate(walk.trace.calls):
        for ref in call.outputs[:1]:
            plain = call.start < call.end and mixed[call.start] == mixed[call.end]
            for dim, ids in walk.track(ref).items():
                found.append(Site(call.module, dim, numbered(ids), ref.shape, order, plain))
    return tuple(found)


def sizes(
    found: Iterable[RawSize], modules: Mapping[str, nn.Module], numbered: Numbered, known: Iterable[Size] = ()
) -> tuple[Size, ...]:
    """The attributes that exist and hold exactly the count they were said to hold, after those that are known."""
    kept = {(size.module, size.attribute): size for size in known}
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
