"""Three convolutions and one dense layer for MNIST; the maps keep their size and nothing is pooled.

Reference: CNN 1 of "Systematic Model Complexity Reduction by Elimination of Irrelevant Layers in Convolutional Neural
Networks". Only the number of feature maps differs from layer to layer; the paper does not give them, ours are 16, 32
and 64 with 3x3 kernels.
"""

from torch import nn

INPUT_SHAPE = (1, 28, 28)


def build(num_classes: int = 10, in_channels: int = 1, width: float = 1.0, size: int = 28) -> nn.Module:
    """The network, (batch, in_channels, size, size) -> logits (batch, num_classes)."""
    filters = [max(1, round(each * width)) for each in (16, 32, 64)]
    return nn.Sequential(
        nn.Conv2d(in_channels, filters[0], 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters[0], filters[1], 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters[1], filters[2], 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(filters[2] * size * size, num_classes),
    )
