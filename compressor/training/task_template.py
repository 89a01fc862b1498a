"""A task of your own: data, loss, measure and inputs for compressor. It runs as it is; change what is yours.

    compressor train --arch FILE.py:build --task FILE.py:Shapes --epochs 3 --batch-size 16 --out runs/shapes
    compressor prune runs/shapes/model.safetensors --task FILE.py:Shapes --target-macs 0.5 --epochs 1 --out runs/half

Here a small network finds which pixels of made-up images belong to a disc, and is measured by intersection over union.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset


class Discs(Dataset[tuple[Tensor, Tensor]]):
    """Noisy images 3x32x32 with a disc, and its mask. Yours: any data set with `__getitem__` and `__len__`."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(self.seed + index)
        row, column, radius = (torch.rand(3, generator=source) * torch.tensor([32, 32, 10]) + 3).tolist()
        rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        mask = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        noise = torch.rand(3, 32, 32, generator=source)
        return 0.4 * noise + 0.6 * mask, mask.long()


class Shapes:
    """The task: these four methods."""

    # lower_is_better = True  # where the main figure is an error

    def data(self, split: str) -> Any:
        """Of "train", "validation" or "test": a data set of examples, or anything that gives batches: a DataLoader,
        WebDataset, a generator. `--batch-size` is for data sets of examples."""
        return Discs(*{"train": (256, 0), "validation": (64, 10_000), "test": (64, 20_000)}[split])

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, one number."""
        images, masks = batch
        return functional.cross_entropy(model(images), masks)

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Figures over all batches, the main one first."""
        both = either = right = count = 0
        for images, masks in batches:
            found = model(images).argmax(1)
            both += int((found & masks).sum())
            either += int((found | masks).sum())
            right += int((found == masks).sum())
            count += masks.numel()
        return {"IoU": both / max(either, 1), "pixels right": right / count}

    def inputs(self, batch: Any) -> Any:
        """What the model is called with: a tensor, a tuple of several, or a dict of keywords."""
        images, _ = batch
        return images


def build(width: int = 16) -> nn.Module:
    """A network for it. Yours: `--arch FILE.py:FUNCTION`, torchvision:NAME, timm:NAME, or a model file."""
    return nn.Sequential(
        *block(3, width),
        nn.MaxPool2d(2),
        *block(width, 2 * width),
        nn.Upsample(scale_factor=2),
        *block(2 * width, width),
        nn.Conv2d(width, 2, 1),
    )


def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Convolution, batch norm, ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
