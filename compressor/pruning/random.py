"""Prune filters by chance: what any method has to beat."""

import numpy as np
from torch import nn

from compressor.graph.channels import Channels
from compressor.pruning.scores import Given, Scores


def random(model: nn.Module, channels: Channels, given: Given) -> Scores:
    """A number from 0 to 1 for each channel, the same for the same seed.

    Reference: Mittal, Bhardwaj, Khapra, Ravindran, "Recovering from Random Pruning: On the Plasticity of Deep
    Convolutional Neural Networks", WACV 2018.
    """
    generator = np.random.default_rng(given.seed)
    return Scores({group.name: generator.random(group.size) for group in channels.free})
