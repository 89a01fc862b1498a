"""Which identities belong together, and which may not be edited, as propagation finds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from compressor.graph.channels import Ids, Key

Roots = NDArray[np.int64]


@dataclass
class Unions:
    """Which identities belong together, as propagation found it; several over the same parameters share one.

    `made` marks the positions of tensors that forward makes itself (`zeros`, `expand`): they take whatever size the
    code asks for, so they hold nothing back until they are tied to channels.
    """

    count: int = 0
    fresh_blocks: dict[int, Ids] = field(default_factory=dict)  # of all identities, in their order, by their `id`
    blocks: dict[Key, Ids] = field(default_factory=dict)
    pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)
    prune_only: list[tuple[Ids, str]] = field(default_factory=list)
    columns: list[Ids] = field(default_factory=list)  # of weights, where they read channels
    rows: list[Ids] = field(default_factory=list)  # of weights, where they make channels
    aliases: list[tuple[Ids, Ids]] = field(default_factory=list)  # pairs that one weight is computed from
    apart: list[Ids] = field(default_factory=list)  # channels that go a way of their own, so cannot stand for others
    made: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1024, dtype=bool))
    fixed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1024, dtype=bool))  # frozen as they are
    _made_pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    _any_made: bool = False
    met: dict[tuple[int, int, bool], tuple[Ids, Ids]] = field(default_factory=dict)  # arrays that are tied, by which

    def fresh(self, size: int, made: bool = False) -> Ids:
        start, self.count = self.count, self.count + size
        ids = np.arange(start, self.count, dtype=np.int64)
        self.fresh_blocks[id(ids)] = ids
        self._any_made |= made
        if self.count > len(self.made):
            more = np.zeros(max(len(self.made), size), dtype=bool)
            self.made, self.fixed = np.concatenate([self.made, more]), np.concatenate([self.fixed, more])
        if made:
            self.made[start : self.count] = True
        return ids

    def is_made(self, ids: Ids) -> bool:
        return self._any_made and bool(self.made[ids].all())

    def tie(self, one: Ids, other: Ids) -> None:
        self.pairs.append((one, other))
        if not self._any_made:
            return
        here, there = self.made[one], self.made[other]
        if here.any() or there.any():
            self._made_pairs.append((one, other))
            while any(self._settled(*pair) for pair in self._made_pairs):
                pass

    def _settled(self, one: Ids, other: Ids) -> bool:
        """Positions tied to channels take no other size than theirs."""
        settled = self.made[one] != self.made[other]
        self.made[one[settled]] = self.made[other[settled]] = False
        return bool(settled.any())


def leads_of(ties: Unions) -> dict[int, Ids]:
    """For every array that is tied, by its `id`, one that it is tied to position by position, itself or another.

    It is the first block of identities among these, if there is one.
    """
    leads = dict(ties.fresh_blocks)
    turn = {number: at for at, number in enumerate(leads)}

    def lead(ids: Ids) -> Ids:
        above = leads.setdefault(id(ids), ids)
        while above is not ids:
            ids, above = above, leads[id(above)]
        return ids

    for pair in ties.pairs:
        one, other = map(lead, pair)
        if turn.get(id(one), len(turn)) > turn.get(id(other), len(turn)):
            one, other = other, one
        leads[id(other)] = one
    return {number: lead(ids) for number, ids in leads.items()}


def roots_of(ties: Unions, leads: Mapping[int, Ids] | None = None) -> Roots:
    """For every raw identity, the number of the set it was tied into; `leads` are those of the ties."""
    leads = leads_of(ties) if leads is None else leads
    base, turn = np.arange(ties.count), np.empty(ties.count, dtype=np.int64)
    for number, block in ties.fresh_blocks.items():
        if leads[number] is not block:
            base[block[0] : block[0] + len(block)] = leads[number]
    rest = {id(ids): ids for pair in ties.pairs for ids in pair if id(ids) not in ties.fresh_blocks}
    if rest:
        pairs = [(base[ids], base[leads[number]]) for number, ids in rest.items()]
        met = np.zeros(ties.count, dtype=bool)
        met[np.concatenate([ids for pair in pairs for ids in pair])] = True
        nodes = np.flatnonzero(met)
        turn[nodes] = np.arange(len(nodes))
        labels = connected([(turn[one], turn[other]) for one, other in pairs], len(nodes))
        firsts = np.empty_like(nodes)
        firsts[labels[::-1]] = nodes[::-1]
        joined = np.arange(ties.count)
        joined[nodes] = firsts[labels]
        base = joined[base]
    own_lead = np.flatnonzero(base == np.arange(ties.count))
    turn[own_lead] = np.arange(len(own_lead))
    return turn[base]


def connected(pairs: list[tuple[Ids, Ids]], count: int) -> Roots:
    """The number of each identity's set, when the identities of each pair of arrays belong together."""
    if not pairs:
        return np.arange(count, dtype=np.int64)
    ones, others = (np.concatenate(side) for side in zip(*pairs, strict=True))
    links = coo_matrix((np.ones(len(ones), dtype=bool), (ones, others)), shape=(count, count))
    labels: Roots = connected_components(links, directed=False)[1].astype(np.int64)
    return labels
