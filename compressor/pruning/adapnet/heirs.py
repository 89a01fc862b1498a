"""Which filters stand in for one that goes, and by how much: those that predict its activation, by least squares.

Ours, beyond the paper, which says nothing of the layers that read a removed filter. Kernels of all sizes can be handed
on like this, since what holds at every place holds at every tap of a kernel.
"""

import torch
from torch import Tensor

RIDGE = 0.01  # of the channels' mean variance: few samples must not make large shares


def shares(covariance: Tensor, removed: list[int]) -> tuple[list[int], Tensor]:
    """The channels that stay, and their shares of each removed one: (staying, removed).

    `covariance` is (channels, channels). The shares minimise the variance of what is left of the removed channels.
    """
    gone = set(removed)
    staying = [i for i in range(len(covariance)) if i not in gone]
    return staying, torch.linalg.solve(_ridged(covariance)[staying][:, staying], covariance[staying][:, removed])


def residuals(covariance: Tensor) -> Tensor:
    """The variance of each channel that all others together do not predict: (channels,)."""
    precision: Tensor = torch.linalg.inv(_ridged(covariance))
    return precision.diagonal().reciprocal()


def _ridged(covariance: Tensor) -> Tensor:
    weight = max(RIDGE * float(covariance.diagonal().mean()), 1e-12)
    return covariance + torch.eye(len(covariance), dtype=covariance.dtype).mul(weight)
