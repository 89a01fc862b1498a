"""Least squares for layers with so many inputs that solving them as a whole takes too long.

The channels of the dense network are predicted from those of the small one and the prediction is folded into what reads
them: all columns of a channel share one, so the system is as large as the number of channels, whatever the kernel.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compressor.graph.channels import Ids
from compressor.pruning.reconstruction.gram import RIDGE, Gram, Ridge, Rows, Solution, choose


@dataclass
class Fold:
    """The sums for a layer whose unknowns belong to the channels `ids` in the dense network; `removed` are gone."""

    ids: Ids
    removed: Ids
    constant: bool
    gram: Gram = field(default_factory=lambda: Gram(constant=True))
    held: list[Rows] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = self.ids[~np.isin(self.ids, self.removed)]
        self.dense, self.small = cells(self.ids), cells(self.left)

    def add(self, rows: Rows, full: Tensor, held: Tensor) -> None:
        """Add rows of the small network, and the layer's inputs there in the dense one; some are held back."""
        x = rows.x.float()
        self.gram.add(Rows(_by_channel(x[:, ~held], self.small), _by_channel(full[:, ~held].float(), self.dense)))
        self.held.append(Rows(x, rows.y.float(), rows.level).part(held))

    def best(self, before: Tensor, full: Tensor) -> Solution:
        """The folded matrix, or for each output the one before; `full` is the dense one, of the outputs that stay."""
        same = self.left[self.small[:, :1]] == self.ids[self.dense[:, 0]]
        keep = torch.zeros_like(self.gram.cross)
        keep[:, :-1] = torch.from_numpy(same).to(keep)
        predicted = Ridge(self.gram.inner, keep, RIDGE, constant=True)(self.gram.cross)
        folded = torch.zeros_like(before)
        for mine, theirs in zip(self.small.T, self.dense.T, strict=True):
            spread = predicted @ full[:, theirs]
            folded[:, mine] = spread[:, :-1]
            if self.constant:
                folded[:, -1] += spread[:, -1]
        chosen, errors = choose([before, folded], self.held)
        matrix = torch.where((chosen == 1)[:, None], folded, before)
        return Solution(matrix, errors[0], errors.gather(0, chosen[None])[0])


def cells(ids: Ids) -> Ids:
    """(channels, columns of each): where the columns of every channel stand; channels in the order of their numbers."""
    held, counts = np.unique(ids, return_counts=True)
    found: Ids = np.argsort(ids, kind="stable").reshape(len(held), counts[0])
    return found


def _by_channel(x: Tensor, where: Ids) -> Tensor:
    """(groups, rows, unknowns) -> (groups, rows for each column of a channel, channels)."""
    return x[:, :, where].transpose(2, 3).flatten(1, 2)
