"""Prune the filters that the others of their layer can best stand in for."""

import torch
from torch import Tensor, nn

from compressor.graph.channels import Channels
from compressor.pruning.scores import Given, Scores, relative


def fpgm(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """The sum of a filter's Euclidean distances to all filters of its layer; lowest near their geometric median.

    Reference: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019, section 3.3. The distances are all taken before the first filter goes, as there.
    """
    return relative(model, channels, _distances)


def _distances(rows: Tensor) -> Tensor:
    exact = rows.double()  # distances between near neighbours are small differences of large numbers
    return torch.cdist(exact, exact).sum(1)
