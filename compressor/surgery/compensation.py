"""Make up for the mean of what is removed, in whatever follows the layers that read it.

A reader that loses channels of mean activation m shifts, on average, by its columns times m. A bias takes that shift
up; without one, the running mean of the batch norm behind the reader does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.graph.channels import Channels
from compressor.surgery.edits import Plan, Prune


def compensate_(tensors: Mapping[str, Tensor], plan: Plan, channels: Channels) -> None:
    """Apply the compensation of every prune that gives means; readers with neither bias nor batch norm stay."""
    for edit in plan.edits:
        if not isinstance(edit, Prune) or edit.means is None:
            continue
        for place in channels.group(edit.group).places:
            absorber = channels.absorbers.get(place.tensor)
            if place.role == "column" and absorber is not None:
                weight = tensors[place.tensor]
                where = channels.positions(place, edit.channels)  # (channels, occurrences)
                means = torch.tensor(edit.means, dtype=weight.dtype, device=weight.device)
                columns = weight.index_select(place.dim, torch.from_numpy(where.ravel()).to(weight.device))
                spread = means.repeat_interleave(where.shape[1])
                shift = torch.tensordot(columns.movedim(place.dim, 0).flatten(2).sum(2) if weight.ndim > 2
                                        else columns.movedim(place.dim, 0), spread, dims=([0], [0]))  # fmt: skip
                tensors[absorber.tensor].add_(shift if absorber.kind == "bias" else -shift)
