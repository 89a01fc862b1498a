"""Decide in one look at a trained network: score its channels by a method of the table, and select."""

from collections.abc import Sequence

from torch import Tensor, nn

from compressor.graph.channels import Channels
from compressor.methods.scores import Given
from compressor.methods.selection import Selection, select
from compressor.methods.settings import PruneSettings, check
from compressor.methods.table import METHODS


def decide(
    model: nn.Module,
    channels: Channels,
    settings: PruneSettings,
    batches: Sequence[tuple[Tensor, Tensor]] = (),
) -> Selection:
    """Choose what to prune; the model is not changed.

    `batches` are images (batch, channels, height, width), normalised as the model takes them, and labels (batch,); only
    methods that need data look at them.

    Raises:
        UsageError: a setting is out of its range, the method needs data, or nothing would be pruned.
        ModelError: nothing may be pruned, or the target cannot be reached.
    """
    check(settings, has_data=bool(batches))
    scores = METHODS[settings.method](model, channels, Given(tuple(batches), settings.seed))
    return select(channels, scores, settings)
