"""Small networks and data for the tests of PrimeNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.primenet.network import PrimeNetwork, build_stage
from compressor.primenet.settings import PrimeNetSettings
from compressor.training.data import Data
from compressor.training.sets import ImageSet
from compressor.vision.preparation import Preparation

CLASSES = 4
IMAGE = (2, 8, 8)


def network(**settings) -> PrimeNetwork:
    """A PrimeNet of 6 + 6 channels in front of a convolution and a linear layer."""
    chosen = PrimeNetSettings(reduced=3, **settings)
    stage = build_stage(IMAGE, CLASSES, chosen, filters=6, projected=6)
    rest = nn.Sequential(
        nn.BatchNorm2d(12), nn.MaxPool2d(2), nn.Conv2d(12, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, CLASSES)
    )
    return PrimeNetwork(stage, rest, chosen)


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *IMAGE), torch.arange(count) % CLASSES


def plain(width: int = 16) -> nn.Sequential:
    """Wide 5x5 convolutions at full size first, where the block pays; then a smaller part."""
    return nn.Sequential(
        nn.Conv2d(2, width, 5, padding=2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 6, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


class Residual(nn.Module):
    """One block around a stream, activations called as functions, and a stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1))
        self.last = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.block(x))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def stripes(count: int = 96, seed: int = 0) -> Data:
    """Images whose class is where a bright stripe lies; easy enough to be learnt in a few epochs."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 60, (count, *IMAGE), generator=source, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist()):
        image[:, 2 * label : 2 * label + 2] += 150
    third = count // 3
    parts = [ImageSet(images[i : i + third], labels[i : i + third]) for i in range(0, count, third)]
    names = tuple(f"stripe {index}" for index in range(CLASSES))
    return Data("stripes", *parts, names, IMAGE, Preparation((0.3,) * 2, (0.3,) * 2), "none", [], [])
