"""A small CNN for scikit-learn's 8x8 digits: what the demo compresses.

Three convolutions with batch norm, one pooling layer, a linear layer on the mean of each map. 57,000 parameters, wide
enough for its task that half of the MACs can go. digits_cnn.safetensors holds it trained; train_digits.py trained it.
"""

from torch import nn

INPUT_SHAPE = (1, 8, 8)


def build(num_classes: int = 10, in_channels: int = 1, width: float = 1.0) -> nn.Module:
    """The network, (batch, in_channels, 8, 8) -> logits (batch, num_classes); `width` scales every layer's filters."""
    filters = [max(1, round(each * width)) for each in (32, 64, 64)]
    return nn.Sequential(
        nn.Conv2d(in_channels, filters[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(filters[0]),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters[0], filters[1], 3, padding=1, bias=False),
        nn.BatchNorm2d(filters[1]),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(filters[1], filters[2], 3, padding=1, bias=False),
        nn.BatchNorm2d(filters[2]),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(filters[2], num_classes),
    )
