"""Prune the filters with the smallest sum of absolute weights."""

from torch import nn

from compressor.graph.channels import Channels
from compressor.pruning.scores import Given, Scores, relative


def l1(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The L1 norm of a channel's filters.

    Reference: Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    The paper follows the shortcut where layers are coupled; here all coupled layers have a say (`scores`).
    """
    return relative(model, channels, lambda rows: rows.abs().sum(1))
