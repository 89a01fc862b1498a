"""Prune the filters with the smallest Euclidean norm."""

import torch
from torch import nn

from compressor.graph.channels import Channels
from compressor.pruning.scores import Given, Scores, relative


def l2(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The L2 norm of a channel's filters.

    Reference: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
    IJCAI 2018, section 3.2. Here filters are cut at once and not zeroed again in every epoch.
    """
    return relative(model, channels, lambda rows: torch.linalg.vector_norm(rows, dim=1))
