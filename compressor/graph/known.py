"""What trials have shown of a network beyond what propagation says, and the map that follows from both."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from compressor.graph import groups
from compressor.graph.channels import Group, Ids, Key, Size
from compressor.graph.propagate import RawSize
from compressor.graph.trial import Mismatch
from compressor.graph.unions import Unions


@dataclass(frozen=True)
class Known:
    """What trials have shown beyond what propagation says."""

    pairs: tuple[tuple[Ids, Ids], ...] = ()  # that belong together
    frozen: tuple[tuple[Ids, str], ...] = ()
    prune_only: tuple[tuple[Ids, str], ...] = ()
    sizes: tuple[RawSize, ...] = ()  # attributes that the code reads
    least: Mapping[str, int] = field(default_factory=dict)  # groups of which a trial leaves more than one channel

    def tying(self, one: Ids, other: Ids) -> "Known":
        return replace(self, pairs=(*self.pairs, (one, other)))

    def freezing(self, arrays: Iterable[Ids], reason: str) -> "Known":
        return replace(self, frozen=(*self.frozen, *((ids, reason) for ids in arrays)))

    def beyond(self, ties: Unions) -> Unions:
        """The ties of propagation with these."""
        return replace(
            ties,
            pairs=[*ties.pairs, *self.pairs],
            frozen=[*ties.frozen, *self.frozen],
            prune_only=[*ties.prune_only, *self.prune_only],
        )


@dataclass(frozen=True)
class Map:
    """The channels as propagation and what is known say."""

    known: Known
    ties: Unions
    numbered: groups.Numbered
    identities: Mapping[Key, Ids]
    groups: tuple[Group, ...]
    sizes: tuple[Size, ...]

    @property
    def roots(self) -> Ids:
        return self.numbered.roots


@dataclass(frozen=True)
class Attempt:
    """A map, and what a trial of it objects to."""

    map: Map
    objection: Mismatch | None

    def goes_further(self, than: Mismatch) -> bool:
        now = self.objection
        return now is None or (now.walk is than.walk and now.op > than.op)
