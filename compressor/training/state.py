"""What passes between a phase of training and its caller: where it stands, where it saves, what it did."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import CompressorError


class Diverged(CompressorError):
    """A loss or a weight is no longer a finite number."""


@dataclass
class TrainState:
    """Where training stands; what `after_step` is given."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int  # counts as the settings' first_epoch does
    batches: int  # optimizer steps per epoch
    batch: int = 0  # of them done in this epoch
    step: int = 0  # done in this phase
    lr: float = 0.0  # of the last step


AfterStep = Callable[[TrainState], bool | None]


@dataclass(frozen=True)
class Saving:
    """Where a phase keeps its checkpoints, and what else its caller wants in them, as plain data and tensors."""

    folder: Path
    phase: str = "train"
    resume: bool = False  # go on from the folder's last checkpoint, if it has one
    every_seconds: float = 300.0  # within an epoch; besides one at every epoch's end
    structure: Callable[[], dict[str, Any]] = dict  # how the model was edited
    method: Callable[[], dict[str, Any]] = dict  # the state of whoever edits it
    # Given both back before the tensors return; where the structure can change, it must make the model fit in place.
    restore: Callable[[dict[str, Any], dict[str, Any]], None] | None = None


@dataclass
class History:
    """What a phase did."""

    rows: list[dict[str, Any]]  # one an epoch, plain data
    notes: list[str]  # lines to tell the user
    optimizer: torch.optim.Optimizer  # with its state, for a phase that follows
    ended_early: bool  # by `after_step`
