"""What a plan does to one dimension of one tensor."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.graph.channels import Ids
from compressor.surgery.edits import Edit, Insert, Merge
from compressor.surgery.renumber import Renumbering

Positions = NDArray[np.int64]


class Layout(NamedTuple):
    """What a plan does to all dimensions that hold the same channels, as positions on one device."""

    keep: Tensor  # that take up the ones in `drop`
    drop: Tensor
    merged: Tensor  # where the ones in `keep` stand afterwards
    order: Tensor  # for each position afterwards, the one it comes from
    inserts: tuple[tuple[Insert, Tensor, Tensor], ...]  # with the positions of newcomer and master afterwards


@dataclass
class Layouts:
    """Works out each layout once: most arrays of channels stand in several tensors, and a batch norm's in four."""

    renumbering: Renumbering
    _known: dict[tuple[int, torch.device], Layout] = field(default_factory=dict)

    def of(self, edits: Iterable[Edit], ids: Ids, device: torch.device) -> Layout:
        """What these edits, those of the groups that live there, do to a dimension that holds the channels `ids`."""
        key = (id(ids), device)
        if key not in self._known:
            self._known[key] = self._worked_out(edits, ids, device)
        return self._known[key]

    def _worked_out(self, edits: Iterable[Edit], ids: Ids, device: torch.device) -> Layout:
        order, _ = self.renumbering.sources(ids)
        after = self.renumbering.array(ids)
        keep, drop, merged, inserts = [], [], [], []

        def there(array: Ids, identity: int) -> Positions:
            return np.flatnonzero(array == identity)

        def placed(*positions: Positions) -> Tensor:
            return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *positions])).to(device)

        for edit in edits:
            if isinstance(edit, Merge) and (where := there(ids, edit.keep)).size:
                keep.append(where)
                drop.append(there(ids, edit.drop))
                merged.append(there(after, edit.keep))
            elif isinstance(edit, Insert) and (where := there(after, self.renumbering.newcomer[edit.after])).size:
                inserts.append((edit, placed(where), placed(there(after, edit.after))))
        nothing = placed()
        pairs = (placed(*keep), placed(*drop), placed(*merged)) if keep else (nothing, nothing, nothing)
        return Layout(*pairs, placed(order), tuple(inserts))


class Slices(NamedTuple):
    """One dimension of one tensor, and its new layout."""

    dim: int
    column: bool
    layout: Layout

    def apply(self, tensor: Tensor, name: str | None) -> Tensor:
        """The tensor in its new layout; `name` is None for gradients and optimizer state, whose newcomers are zero."""
        result = tensor.index_select(self.dim, self.layout.order)
        if self.layout.keep.numel():
            self._merge_(result, tensor)
        for edit, here, master in self.layout.inserts:
            self._insert_(result, edit, here, master, name)
        return result

    def _merge_(self, result: Tensor, tensor: Tensor) -> None:
        """Fill the places of merged pairs, from the tensor as it was."""
        total = tensor.index_select(self.dim, self.layout.keep)
        total += tensor.index_select(self.dim, self.layout.drop)
        result.index_copy_(self.dim, self.layout.merged, total if self.column else total / 2)

    def _insert_(self, result: Tensor, edit: Insert, here: Tensor, master: Tensor, name: str | None) -> None:
        """Fill the newcomer's positions, which hold copies of the master's."""
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
