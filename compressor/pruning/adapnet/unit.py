"""All that AdapNet remembers of one group of channels, and how an edit of the group changes it.

Row i of everything belongs to the group's channel `ids[i]`; column q of the table and `owners == q` to cluster q.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compressor.pruning.adapnet import clusters, tables
from compressor.pruning.adapnet.clusters import Clustering
from compressor.pruning.adapnet.maps import Recording
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.subspace import Autoencoder
from compressor.surgery.edits import Edit, Insert, Merge, Prune

PROTECTION = 2  # periods in which a new filter is not judged
_TENSORS = ("table", "exemplars", "owners", "points", "idle", "protect", "frozen", "silent")
_PLAIN = ("original", "size", "boundaries")


class Unit:
    """The state of one group.

    table (filters, clusters): counts, the paper's RFMDist.  concepts: its columns that are concepts.
    exemplars (e, side, side): of all clusters; owners (e,) says of which, in the order of clusters.
    points (clusters,): dictionary maps ever assigned.  idle (clusters,): periods without maps.
    protect (filters,): periods of protection left.  frozen (filters,): removed at the end of the running period.
    silent (filters,): periods without any activity.  boundaries: evaluations so far.
    reasons: the numbers for which a channel was frozen.
    """

    def __init__(self, name: str, ids: list[int], size: int, autoencoder: Autoencoder) -> None:
        filters = len(ids)
        self.name = name
        self.ids = list(ids)
        self.original = filters
        self.size = size
        self.autoencoder = autoencoder
        self.table = torch.zeros(filters, 0, dtype=torch.float64)
        self.concepts: list[int] = []
        self.exemplars = torch.zeros(0, size, size, dtype=torch.float16, device=self.device)
        self.owners = torch.zeros(0, dtype=torch.int64)
        self.points = torch.zeros(0, dtype=torch.float64)
        self.idle = torch.zeros(0, dtype=torch.int64)
        self.protect = torch.zeros(filters, dtype=torch.int64)
        self.frozen = torch.zeros(filters, dtype=torch.bool)
        self.silent = torch.zeros(filters, dtype=torch.int64)
        self.boundaries = 0
        self.reasons: dict[int, dict[str, float]] = {}
        self.recording: Recording | None = None

    @property
    def filters(self) -> int:
        return len(self.ids)

    @property
    def clusters(self) -> int:
        return int(self.table.shape[1])

    @property
    def frozen_ids(self) -> list[int]:
        return [identity for identity, frozen in zip(self.ids, self.frozen.tolist()) if frozen]

    @property
    def device(self) -> torch.device:
        """Where the maps live: the autoencoder's device."""
        return self.autoencoder["steps"].device

    def start_recording(self, maps_per_filter: int) -> Recording:
        """Begin a period with an empty buffer of that many maps per filter."""
        self.recording = Recording(self.filters, maps_per_filter, self.size, self.device)
        return self.recording

    def close_(self) -> None:
        """A period ends: count in how many of them each filter showed nothing."""
        if self.recording is not None and self.recording.filled:
            self.silent = torch.where(self.recording.dead(), self.silent + 1, 0)

    def freeze_(self, reasons: Mapping[int, dict[str, float]]) -> None:
        """These channels will be removed at the end of the next period, for the numbers that are given."""
        for identity, numbers in reasons.items():
            self.reasons[identity] = numbers
            self.frozen[self.ids.index(identity)] = True

    def see_(self, found: Clustering, limit: int, beta: float, settings: AdapNetSettings) -> None:
        """Take the clusters of a period's maps, `limit` at most, for concepts where filters differ on them."""
        # `extract` has counted this period already.
        self.concepts += tables.detect(self.table, self.concepts, found, self.boundaries - 1, beta, settings)
        dropped = clusters.retired(self.idle, self.concepts, self.clusters, limit)
        if dropped:
            self.forget_clusters_(dropped)

    def release_(self) -> None:
        """Spare what is still frozen."""
        self.frozen.zero_()
        self.reasons.clear()

    def follow_(self, edits: Sequence[Edit], ids: list[int]) -> int:
        """Edits of the group were carried out, after which its channels are `ids`.

        Returns how many filters went that were not counted when they were frozen.
        """
        gone, counted = [identity for edit in edits if isinstance(edit, Prune) for identity in edit.channels], 0
        for edit in edits:
            if isinstance(edit, Merge):
                self.merge_(self.ids.index(edit.keep), self.ids.index(edit.drop))
                counted += 1
            elif isinstance(edit, Insert):
                position = self.ids.index(edit.after) + 1
                # One more than asked: the next pruning step counts down before it judges.
                self.insert_(position, ids[position], PROTECTION + 1)
        positions = [self.ids.index(identity) for identity in gone]
        counted += int((~self.frozen[positions]).sum())
        self.prune_(positions)
        assert self.ids == ids, f"{self.name} is out of step"
        return counted

    def spare_(self, edits: Sequence[Edit]) -> None:
        """Edits were refused: protect their filters, so that they are not proposed again at once."""
        for identity in [each for edit in edits if not isinstance(edit, Insert) for each in edit.channels]:
            at = self.ids.index(identity)
            self.reasons.pop(identity, None)
            self.frozen[at] = False
            self.protect[at] = PROTECTION + 1

    def prune_(self, filters: list[int]) -> None:
        """Forget the filters at these positions."""
        gone = set(filters)
        self._select_([i for i in range(self.filters) if i not in gone])

    def merge_(self, keep: int, drop: int) -> None:
        """The filters at two positions became one, at `keep`."""
        table = tables.merge_rows(self.table, keep, drop)
        self.protect[keep] = torch.maximum(self.protect[keep], self.protect[drop])
        self.silent[keep] = torch.minimum(self.silent[keep], self.silent[drop])
        self.prune_([drop])
        self.table = table

    def insert_(self, position: int, identity: int, protect: int) -> None:
        """A new filter, channel `identity`, stands at `position`, with that many periods of protection."""
        assert self.recording is None, "a filter is inserted between periods"
        self.table = tables.insert_row(self.table, position)
        self.ids.insert(position, identity)
        self.protect = _inserted(self.protect, position, protect)
        self.frozen = _inserted(self.frozen, position, 0)
        self.silent = _inserted(self.silent, position, 0)

    def forget_clusters_(self, dropped: list[int]) -> None:
        """Retire clusters that are no concepts."""
        self.table, self.concepts = tables.drop_columns(self.table, self.concepts, dropped)
        keep = torch.ones(len(self.points), dtype=torch.bool)
        keep[dropped] = False
        self.points, self.idle = self.points[keep], self.idle[keep]
        kept = keep[self.owners]
        self.exemplars = self.exemplars[kept.to(self.device)]
        self.owners = (keep.cumsum(0) - 1)[self.owners[kept]]

    def _select_(self, filters: list[int]) -> None:
        chosen = torch.tensor(filters, dtype=torch.int64)
        self.ids = [self.ids[i] for i in filters]
        self.table, self.protect = self.table[chosen], self.protect[chosen]
        self.frozen, self.silent = self.frozen[chosen], self.silent[chosen]
        self.reasons = {identity: self.reasons[identity] for identity in self.ids if identity in self.reasons}
        if self.recording is not None:
            self.recording.select_(chosen)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, the running period's maps included."""
        state: dict[str, Any] = {name: getattr(self, name) for name in (*_TENSORS, *_PLAIN)}
        state["ids"], state["concepts"] = list(self.ids), list(self.concepts)
        state["reasons"] = {identity: dict(numbers) for identity, numbers in self.reasons.items()}
        state["autoencoder"] = dict(self.autoencoder)
        state["recording"] = None if self.recording is None else self.recording.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; maps and autoencoder move to this unit's device."""
        device = self.device
        for name in (*_TENSORS, *_PLAIN):
            setattr(self, name, state[name])
        self.ids, self.concepts = list(state["ids"]), list(state["concepts"])
        self.reasons = {identity: dict(numbers) for identity, numbers in state["reasons"].items()}
        self.exemplars = self.exemplars.to(device)
        self.autoencoder = {name: value.to(device) for name, value in state["autoencoder"].items()}
        self.recording = None
        if state["recording"] is not None:
            self.start_recording(state["recording"]["maps"].shape[1]).load_state_dict(state["recording"])


def _inserted(values: Tensor, position: int, value: int) -> Tensor:
    return torch.cat([values[:position], values.new_full((1,), value), values[position:]])
