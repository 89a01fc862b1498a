"""Tiny networks for the tests of exported files."""

import torch
from torch import nn


def lively(module: nn.Module) -> nn.Module:
    """Give batch norms statistics that are not the identity, so that wrong folding shows."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 2.0, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)
    return module


def small_net(classes: int = 4) -> nn.Module:
    """Images 3x8x8 to scores, two convolutions."""
    torch.manual_seed(0)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3),
            nn.BatchNorm2d(16),
            nn.Flatten(),
            nn.Linear(64, classes),
        )
    ).eval()
