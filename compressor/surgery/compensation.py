"""Make up for what is removed, in the layers that read it and in whatever follows them.

A reader that loses channels of mean activation m shifts, on average, by its columns times m. A bias takes that shift
up; without one, the running mean of the batch norm behind the reader does. Where other channels predict a removed one,
the reader's columns for these take on their share of its columns.
"""

import torch
from torch import Tensor

from compressor.graph.channels import Channels, Place
from compressor.surgery.edits import Plan, Prune


def compensate_(data: dict[str, Tensor], plan: Plan, channels: Channels) -> None:
    """Apply the compensation of every prune that gives means; readers with neither bias nor batch norm stay.

    `data` holds the tensors by name: those that change are replaced in it, and are not written to.
    """
    for edit in plan.edits:
        if not isinstance(edit, Prune) or edit.means is None:
            continue
        for place in channels.group(edit.group).places:
            absorber = channels.absorbers.get(place.tensor)
            if place.role == "column" and absorber is not None:
                weight = data[place.tensor]
                where = channels.positions(place, edit.channels)  # (channels, occurrences)
                means = torch.tensor(edit.means, dtype=weight.dtype, device=weight.device)
                columns = weight.index_select(place.dim, torch.from_numpy(where.ravel()).to(weight.device))
                spread = means.repeat_interleave(where.shape[1])
                shift = torch.tensordot(columns.movedim(place.dim, 0).flatten(2).sum(2) if weight.ndim > 2
                                        else columns.movedim(place.dim, 0), spread, dims=([0], [0]))  # fmt: skip
                data[absorber.tensor] = data[absorber.tensor].add(shift, alpha=1 if absorber.kind == "bias" else -1)
    for edit in plan.edits:  # only now: the shifts are those of the columns as they were
        if isinstance(edit, Prune) and edit.heirs:
            for place in channels.group(edit.group).places:
                if place.role == "column" and place.tensor in data:
                    data[place.tensor] = _bequeathed(data[place.tensor], place, edit, channels)


def _bequeathed(weight: Tensor, place: Place, edit: Prune, channels: Channels) -> Tensor:
    """The weight with the shares of the columns that go added to the columns of the edit's heirs."""
    gone = channels.positions(place, edit.channels)  # (channels, occurrences)
    heirs = channels.positions(place, list(edit.heirs))
    shares = torch.tensor(list(edit.heirs.values()), dtype=weight.dtype, device=weight.device)  # (heirs, channels)
    result = weight
    for occurrence in range(gone.shape[1]):
        old = weight.index_select(place.dim, torch.from_numpy(gone[:, occurrence]).to(weight.device))
        added = torch.tensordot(shares, old.movedim(place.dim, 0), dims=1).movedim(0, place.dim)
        result = result.index_add(place.dim, torch.from_numpy(heirs[:, occurrence]).to(weight.device), added)
    return result
