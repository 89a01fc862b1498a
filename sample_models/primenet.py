"""PrimeNet's own network: the block of three scales, and a small convolutional classifier that reads it.

Reference: "PrimeNet: Adaptive multi-layer deep neural structure for enhanced feature selection in early convolution
stage", sections 3.3 to 4.1; the classifier's layers are those of the authors' code. `compressor train` trains it in the
paper's two phases; 0.41 M parameters are claimed, one branch of 3x3, 5x5 or 7x7 makes ours 0.46, 0.50 or 0.55 M.
"""

from collections import OrderedDict
from typing import Literal

from torch import nn

from compressor.primenet.network import PrimeNetwork, build_stage
from compressor.primenet.settings import PrimeNetSettings

INPUT_SHAPE = (1, 28, 28)


def build(
    num_classes: int = 10,
    in_channels: int = 1,
    width: float = 1.0,
    size: int = 28,
    scales: tuple[int, ...] = PrimeNetSettings.scales,
    inference: Literal["static", "entropy"] = PrimeNetSettings.inference,
    retrain_epochs: int = PrimeNetSettings.retrain_epochs,
) -> PrimeNetwork:
    """The network, (batch, in_channels, size, size) -> logits (batch, num_classes); `size` is 12 or more, `width`
    scales the filters.

    `retrain_epochs` are those of the second phase; `inference` says what of the block is left after the first.
    """
    reduced, filters, first, second = (max(1, round(full * width)) for full in (32, 64, 128, 256))
    settings = PrimeNetSettings(
        scales=tuple(scales), reduced=reduced, inference=inference, retrain_epochs=retrain_epochs
    )
    image = (in_channels, size, size)
    stage = build_stage(image, num_classes, settings, filters=filters, projected=filters)
    classifier = OrderedDict(
        norm=nn.BatchNorm2d(2 * filters),
        pool1=nn.MaxPool2d(2),
        conv1=nn.Conv2d(2 * filters, first, 3),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(first, second, 3),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(2),
        mean=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(second, num_classes),
    )
    return PrimeNetwork(stage, nn.Sequential(classifier), settings)
