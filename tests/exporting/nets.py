"""Tiny networks for the tests of exported files."""

from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


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


def trained(model: Net) -> Net:
    """Every batch norm with statistics of its own, as after training."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.3)
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return model.eval()


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
