"""The map from every parameter dimension to the channels it holds, and the questions one may ask of it."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.errors import UsageError, did_you_mean

Ids = NDArray[np.int64]
Key = tuple[str, int]  # name in the state dict, dimension
KEPT = "kept by request"
SINGLE = "a single channel, or all channels tied into one"


class Place(NamedTuple):
    """A dimension of a parameter or buffer in which a group's channels live."""

    tensor: str  # name in the state dict
    dim: int
    role: Literal["row", "column"]  # row: producer or per-channel vector; column: the side that reads the channel


@dataclass(frozen=True)
class Group:
    """Channels that live in the same places, so that one can stand for another.

    `ids` are their identities in the order of the first producer's filters. A frozen group is never edited;
    a `prune_only` one is neither merged nor grown.
    """

    name: str
    ids: Ids
    places: tuple[Place, ...]
    producers: tuple[str, ...]  # modules whose filters make these channels
    frozen: str | None = None
    prune_only: str | None = None

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def readers(self) -> tuple[str, ...]:
        """The modules that read these channels."""
        return tuple(dict.fromkeys(owner(place.tensor) for place in self.places if place.role == "column"))


def owner(tensor: str) -> str:
    """The module that a parameter belongs to; the parameter itself where it stands at the top."""
    module, _, _ = tensor.replace("parametrizations.weight.original", "weight").rpartition(".")
    return module or tensor


class Site(NamedTuple):
    """The output of a module, as long as its dimension `dim` holds tracked channels: `ids`, one per position."""

    module: str
    dim: int
    ids: Ids
    shape: tuple[int, ...]
    order: int  # position in the order of execution
    elementwise: bool  # the module only applied a function to each element (activation, batch norm at inference)


class Size(NamedTuple):
    """An integer of a module (`out_channels`, `groups`, one entry of a tuple) that counts the channels `ids`."""

    module: str
    attribute: str  # with the way to an entry of what it holds: "kernel_size.0", "feature_info.1.num_chs"
    ids: Ids


class Cost(NamedTuple):
    """Multiply-adds of one operator for one image: `factor` times the number of channels in each of `axes`."""

    module: str
    factor: int
    axes: tuple[Ids, ...]


class Held(NamedTuple):
    """A tensor in memory: for one image `factor` bytes times the number of channels in each of `axes`, from the
    operator with the number `born` to the `last` that needs it.
    """

    factor: int
    axes: tuple[Ids, ...]
    born: int
    last: int


@dataclass(frozen=True)
class Absorber:
    """What can take up a constant shift of a layer's output: its bias, or the running mean of the norm behind it."""

    kind: Literal["bias", "running_mean"]
    tensor: str


@dataclass(frozen=True)
class Channels:
    """Who is tied to whom in one model, as captured; surgery returns a new one after every plan."""

    identities: dict[Key, Ids]
    groups: tuple[Group, ...]
    sites_by_module: tuple[Site, ...] = ()
    sizes: tuple[Size, ...] = ()
    costs: tuple[Cost, ...] = ()
    held: tuple[Held, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of every parameter and buffer
    counted: frozenset[str] = frozenset()  # names of the parameters, without buffers
    absorbers: dict[str, Absorber] = field(default_factory=dict)  # by the name of the layer's weight
    notes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)  # of all modules and tensors -> the first name of each

    @cached_property
    def free(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def frozen(self) -> dict[str, str]:
        """Group name -> why it may not be edited."""
        return {group.name: group.frozen for group in self.groups if group.frozen is not None}

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def next_id(self) -> int:
        """Above every identity of the map, those of padding and other constants included."""
        sites = (site.ids for site in self.sites_by_module)
        costs = (axis for cost in self.costs for axis in cost.axes)
        held = (axis for each in self.held for axis in each.axes)
        found = itertools.chain(self.identities.values(), sites, costs, held, (size.ids for size in self.sizes))
        different = {id(ids): ids for ids in found}.values()
        return 1 + max((int(ids.max()) for ids in different if ids.size), default=-1)

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            UsageError: there is none.
        """
        if name not in self._by_name:
            known = did_you_mean(name, self._by_name) or f"; the groups are {', '.join(list(self._by_name)[:8])} ..."
            raise UsageError(f"no group is named {name!r}{known}")
        return self._by_name[name]

    def to_json(self) -> dict[str, Any]:
        """Every group with its members, size and whether it may be edited, as plain types.

        `layers` are those that make or read a group, in the order of execution.
        """
        tied = dict.fromkeys(name for group in self.groups for name in (*group.producers, *group.readers))
        ran = dict.fromkeys(cost.module for cost in self.costs if cost.module in tied)
        return {
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "free": group.frozen is None,
                    "why_frozen": group.frozen,
                    "why_only_pruned": group.prune_only,
                    "makes": list(group.producers),
                    "reads": list(group.readers),
                    "places": [{"tensor": p.tensor, "dim": p.dim, "role": p.role} for p in group.places],
                }
                for group in self.groups
            ],
            "layers": list(ran | tied),
            "macs": self.macs(),
            "params": self.params(),
            "notes": list(self.notes),
        }

    def positions(self, place: Place, ids: Iterable[int]) -> NDArray[np.int64]:
        """Where channels stand in a place: an array (channels, occurrences), each row ascending."""
        held = self.identities[place.tensor, place.dim]
        order = np.argsort(held, kind="stable")
        wanted = np.fromiter(ids, dtype=np.int64)
        first = np.searchsorted(held, wanted, sorter=order)
        count = int(np.count_nonzero(held == wanted[0])) if len(wanted) else 0
        found: NDArray[np.int64] = order[first[:, None] + np.arange(count)]
        return found

    def sites(self, group: Group) -> tuple[Site, ...]:
        """Module outputs that carry every channel of the group, in the order of execution."""
        return tuple(site for site in self.sites_by_module if np.isin(group.ids, site.ids).all())

    def macs(self, removed: Iterable[int] = ()) -> int:
        """Multiply-adds of convolutions and matrix products for one image, without the removed channels."""
        counts = self._without(removed)
        return sum(cost.factor * math.prod(counts.of(axis) for axis in cost.axes) for cost in self.costs)

    def _without(self, removed: Iterable[int]) -> "Counts":
        times = np.ones(self.next_id, dtype=np.int64)
        times[removed if isinstance(removed, np.ndarray) else np.fromiter(removed, dtype=np.int64)] = 0
        return Counts(times)

    def params(self, removed: Iterable[int] = ()) -> int:
        """Parameters (buffers not counted) without the removed channels."""
        counts = self._without(removed)
        total = 0
        for name in self.counted:
            here = 1
            for dim, size in enumerate(self.shapes[name]):
                ids = self.identities.get((name, dim))
                here *= size if ids is None else counts.of(ids)
            total += here
        return total


class Counts:
    """How many channels there are in an array, when there are so many (0, 1, 2) of every identity."""

    def __init__(self, times: NDArray[np.int64]) -> None:
        self.times = times
        self._counted: dict[int, tuple[Ids, int]] = {}  # many places share one array, which stays alive

    def of(self, ids: Ids) -> int:
        known = self._counted.get(id(ids))
        if known is None:
            known = self._counted[id(ids)] = ids, int(self.times[ids].sum())
        return known[1]
