"""Multilayer perceptron 784-784-784-10: every hidden layer is as wide as the image has pixels.

Reference: "Network with Sub-networks: Layer-wise Detachable Neural Network", whose sub-networks take the image into
any of these layers. 1,238,730 parameters and as many MACs less the biases.
"""

from torch import nn

INPUT_SHAPE = (1, 28, 28)


def build(num_classes: int = 10, in_channels: int = 1, hidden_layers: int = 2, size: int = 28) -> nn.Module:
    """The network, (batch, in_channels, size, size) -> logits (batch, num_classes)."""
    pixels = in_channels * size * size
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(hidden_layers):
        layers += [nn.Linear(pixels, pixels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(pixels, num_classes))
