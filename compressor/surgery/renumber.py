"""How a plan changes arrays of identities: which go, which come after which."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from compressor.graph.channels import SINGLE, Channels, Cost, Group, Held, Ids, Site, Size
from compressor.surgery.edits import Insert, Plan


@dataclass(frozen=True)
class Renumbering:
    """Identities removed, and for each master the newcomer that will stand right after it (-1: none).

    Many places of a map share one array of identities: each array is worked out once.
    """

    gone: NDArray[np.bool_]
    newcomer: Ids
    _sources: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]] = field(default_factory=dict)
    _arrays: dict[int, Ids] = field(default_factory=dict)
    _alive: list[Ids] = field(default_factory=list)  # whose number stands in the two above

    @staticmethod
    def of(plan: Plan, channels: Channels) -> "Renumbering":
        count = channels.next_id
        gone = np.zeros(count, dtype=bool)
        gone[np.fromiter(plan.removed, dtype=np.int64)] = True
        newcomer = np.full(count, -1, dtype=np.int64)
        for edit in plan.edits:
            if isinstance(edit, Insert):
                newcomer[edit.after] = count
                count += 1
        return Renumbering(gone, newcomer)

    def sources(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each position afterwards, the position it comes from, and whether it is a newcomer (its master's).

        A channel that fills several positions in a row (a flattened map) is followed by all of its newcomer's.
        """
        known = self._sources.get(id(ids))
        if known is None:
            known = self._sources[id(ids)] = self._worked_out(ids)
            self._alive.append(ids)
        return known

    def _worked_out(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        kept = np.flatnonzero(~self.gone[ids])
        masters = kept[self.newcomer[ids[kept]] >= 0]
        if not masters.size:
            return kept, np.zeros(len(kept), dtype=bool)
        run = np.concatenate([[0], np.cumsum(ids[1:] != ids[:-1])])
        order = np.concatenate([kept, masters])
        new = np.arange(len(order)) >= len(kept)
        by_run = np.lexsort((order, new, run[order]))
        return order[by_run], new[by_run]

    def array(self, ids: Ids) -> Ids:
        """The identities afterwards; the same object where nothing changes."""
        known = self._arrays.get(id(ids))
        if known is None:
            order, new = self.sources(ids)
            grown = bool(new.any())
            known = ids if len(order) == len(ids) and not grown else ids[order]
            if grown:
                known[new] = self.newcomer[known[new]]
            self._arrays[id(ids)] = known
        return known

    def apply(self, channels: Channels) -> Channels:
        """The same map after the plan."""
        identities = {key: self.array(ids) for key, ids in channels.identities.items()}
        shapes = dict(channels.shapes)
        for (name, dim), ids in identities.items():
            if len(ids) != shapes[name][dim]:
                shapes[name] = (*shapes[name][:dim], len(ids), *shapes[name][dim + 1 :])
        return replace(
            channels,
            identities=identities,
            shapes=shapes,
            groups=tuple(map(self._group, channels.groups)),
            sites_by_module=tuple(map(self._site, channels.sites_by_module)),
            sizes=tuple(Size(s.module, s.attribute, self.array(s.ids)) for s in channels.sizes),
            costs=tuple(Cost(c.module, c.factor, tuple(map(self.array, c.axes))) for c in channels.costs),
            held=tuple(Held(h.factor, tuple(map(self.array, h.axes)), h.born, h.last) for h in channels.held),
        )

    def _group(self, group: Group) -> Group:
        ids = self.array(group.ids)
        if ids is group.ids:
            return group
        return replace(group, ids=ids, frozen=group.frozen or (SINGLE if len(ids) == 1 else None))

    def _site(self, site: Site) -> Site:
        ids = self.array(site.ids)
        if ids is site.ids:
            return site
        shape = (*site.shape[: site.dim], len(ids), *site.shape[site.dim + 1 :])
        return Site(site.module, site.dim, ids, shape, site.order, site.elementwise)
