"""VGG-11 for 32x32 images: 8 convolutions with batch norm and one linear layer.

Reference: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", configuration
A, as it is used on CIFAR in "Adaptive Pruning of Convolutional Neural Network". 152.9 M MACs at 3x32x32, 9.2 M
parameters. Differs: one linear layer instead of three; pooling rounds up, so that 28x28 images fit as well.
"""

from collections import OrderedDict

from torch import nn

INPUT_SHAPE = (3, 32, 32)

# Filters of each convolution; "pool" halves the maps.
LAYERS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


def build(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """The network, (batch, in_channels, 32, 32) -> logits (batch, num_classes); `width` scales the filters."""
    layers: list[nn.Module] = []
    channels = in_channels
    for entry in LAYERS:
        if entry == "pool":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            continue
        filters = max(1, round(int(entry) * width))
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
        channels = filters
    classifier = nn.Linear(channels, num_classes)
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=classifier))
