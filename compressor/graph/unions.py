"""Which identities belong together, and which may not be edited, as propagation finds it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compressor.graph.channels import Ids, Key


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
        self.made[start : self.count] = made
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
