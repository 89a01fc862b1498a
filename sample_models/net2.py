"""Net2: 12 convolutions without padding, one pooling layer, three linear layers.

Reference: "Adaptive Pruning of Convolutional Neural Network", Table 1. 7 x 256 and 5 x 512 filters, 92.3 M parameters
at 3x64x64 (its first row, 256x60x60, is what a 5x5 kernel leaves of 64x64). The dropout rate is not given there; ours
is 0.5.
"""

from collections import OrderedDict

from torch import nn

INPUT_SHAPE = (3, 64, 64)

# (filters, kernel size) of each convolution.
LAYERS = ((256, 5),) * 3 + ((256, 3),) * 4 + ((512, 3),) * 5
HIDDEN = 512


def build(num_classes: int = 10, in_channels: int = 3, width: float = 1.0, size: int = 64) -> nn.Module:
    """The network, (batch, in_channels, size, size) -> logits (batch, num_classes); `size` is at least 32.

    `width` scales the filters of every convolution and the two hidden linear layers.
    """
    layers: list[nn.Module] = []
    channels, side = in_channels, size
    for full, kernel in LAYERS:
        filters = max(1, round(full * width))
        layers += [nn.Conv2d(channels, filters, kernel), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
        channels, side = filters, side - kernel + 1
    hidden = max(1, round(HIDDEN * width))
    classifier = nn.Sequential(
        nn.Linear(channels * (side // 2) ** 2, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
    features = nn.Sequential(*layers, nn.MaxPool2d(2))
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier))
