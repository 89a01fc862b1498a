"""What a plan does to one dimension of one tensor."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.graph.channels import Ids, Place
from compressor.surgery.edits import Edit, Insert, Merge
from compressor.surgery.renumber import Renumbering


@dataclass(frozen=True)
class Slices:
    """One dimension's new layout: merged pairs of positions, then the source of every new position."""

    dim: int
    column: bool
    keep: NDArray[np.int64]  # positions that take up the ones in `drop`
    drop: NDArray[np.int64]
    merged: NDArray[np.int64]  # where the ones in `keep` stand in the new layout
    order: NDArray[np.int64]
    # Each with the positions of newcomer and master in the new layout.
    inserts: tuple[tuple[Insert, NDArray[np.int64], NDArray[np.int64]], ...]

    @staticmethod
    def of(edits: Iterable[Edit], ids: Ids, place: Place, renumbering: Renumbering) -> "Slices":
        """What these edits, those of the groups that live in the place, do to it; it holds the channels `ids`."""
        order, _ = renumbering.sources(ids)
        after = renumbering.array(ids)
        keep, drop, merged, inserts = [], [], [], []
        for edit in edits:
            if isinstance(edit, Merge) and (where := np.flatnonzero(ids == edit.keep)).size:
                keep.append(where)
                drop.append(np.flatnonzero(ids == edit.drop))
                merged.append(np.flatnonzero(after == edit.keep))
            elif isinstance(edit, Insert) and (where := np.flatnonzero(after == renumbering.newcomer[edit.after])).size:
                inserts.append((edit, where, np.flatnonzero(after == edit.after)))
        none = np.empty(0, dtype=np.int64)
        return Slices(
            place.dim,
            place.role == "column",
            np.concatenate([none, *keep]),
            np.concatenate([none, *drop]),
            np.concatenate([none, *merged]),
            order,
            tuple(inserts),
        )

    def apply(self, tensor: Tensor, name: str | None) -> Tensor:
        """The tensor in its new layout; `name` is None for gradients and optimizer state, whose newcomers are zero."""
        result = tensor.index_select(self.dim, _index(self.order, tensor))
        if self.keep.size:
            self._merge_(result, tensor)
        for insertion in self.inserts:
            self._insert_(result, insertion, name)
        return result

    def _merge_(self, result: Tensor, tensor: Tensor) -> None:
        """Fill the places of merged pairs, from the tensor as it was."""
        keep, drop = _index(self.keep, tensor), _index(self.drop, tensor)
        total = tensor.index_select(self.dim, keep) + tensor.index_select(self.dim, drop)
        result.index_copy_(self.dim, _index(self.merged, result), total if self.column else total / 2)

    def _insert_(
        self, result: Tensor, insertion: tuple[Insert, NDArray[np.int64], NDArray[np.int64]], name: str | None
    ) -> None:
        """Fill the newcomer's positions, which hold copies of the master's."""
        edit, here, master = insertion[0], _index(insertion[1], result), _index(insertion[2], result)
        if name is None:
            result.index_fill_(self.dim, here, 0)
        elif name in edit.rows and not self.column:
            row = edit.rows[name].to(result)
            result.index_copy_(self.dim, here, row.reshape(result.index_select(self.dim, here).shape))
        elif self.column and edit.columns == "zero":
            result.index_fill_(self.dim, here, 0)
        elif self.column:
            halves = result.index_select(self.dim, here) / 2
            result.index_copy_(self.dim, here, halves)
            result.index_copy_(self.dim, master, halves)


def _index(positions: NDArray[np.int64], tensor: Tensor) -> Tensor:
    return torch.from_numpy(positions).to(tensor.device)
