"""From stored bytes to what a network takes: normalised float batches of its input shape, on its device."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import UsageError
from compressor.training import distributed
from compressor.training.augment import choose_augmentation
from compressor.training.data import AnySet, Data
from compressor.training.randomness import generator
from compressor.training.resizing import fit_shape
from compressor.training.sets import Draws
from compressor.training.settings import TrainSettings
from compressor.vision.preparation import Preparation


def batches(
    image_set: AnySet,
    data: Data,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole set once, in its order: normalised float `(batch, *data.input_shape)` and labels on the device.

    Without a batch size it is `easy_batch_size`.
    """
    device = torch.device(device)
    prepare = InputTransform.of(data, device, channels_last)
    for images, labels in image_set.read(
        torch.arange(len(image_set)).split(batch_size or easy_batch_size(data)), device
    ):
        yield prepare(images), labels


def train_batches(
    data: Data, settings: TrainSettings, epoch: int, start: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The training set's batches of an epoch from the `start`-th on, shuffled and augmented.

    Of several processes each has its part of every batch, which is as it would be in a single one.
    Order and draws are functions of (seed, epoch, batch), so an epoch can go on in its middle. A last batch that is not
    full is left out (other images each epoch), unless it is the only one.
    """
    augmentation = choose_augmentation(settings.augment, data.suits, settings.crop_padding)
    order = torch.randperm(len(data.train), generator=generator(torch.device("cpu"), settings.seed, "order", epoch))
    indices = order.split(settings.batch_size)[: steps_per_epoch(data, settings)]
    prepare = InputTransform.of(data, device, settings.channels_last)
    draws = Draws(augmentation, settings.seed, epoch, start, distributed.own_part)
    for images, labels in data.train.read(indices[start:], device, draws):
        yield prepare(images), labels


def steps_per_epoch(data: Data, settings: TrainSettings) -> int:
    """Batches that `train_batches` gives in an epoch. Raises UsageError for a batch size below 1 for each process."""
    if settings.batch_size < 1:
        raise UsageError(f"batch_size={settings.batch_size} must be at least 1")
    if min(settings.batch_size, len(data.train)) < distributed.size():
        raise UsageError(
            f"{distributed.size()} processes share every batch: give a larger --batch-size, or start fewer"
        )
    return max(1, len(data.train) // settings.batch_size)


def easy_batch_size(data: Data) -> int:
    """A batch that needs no thought where nothing is learnt: 512 images of 3x64x64 and below, 41 of 3x224x224."""
    return max(1, min(512, 512 * 3 * 64 * 64 // math.prod(data.input_shape)))


def drawn_batches(
    data: Data, images: int, seed: int, device: torch.device, batch_size: int = 128
) -> list[tuple[Tensor, Tensor]]:
    """Random training images with their labels, as the model takes them and not augmented: what scores look at."""
    order = torch.randperm(len(data.train), generator=generator(torch.device("cpu"), seed, "score"))[:images]
    prepare = InputTransform.of(data, device)
    return [(prepare(x), y) for x, y in data.train.read(order.split(batch_size), device)]


def examples(image_set: AnySet, data: Data, count: int = 8, device: torch.device | str = "cpu") -> Tensor:
    """Up to `count` images spread evenly over a set, as the network takes them: float `(count, *data.input_shape)`."""
    spread = torch.linspace(0, len(image_set) - 1, min(count, len(image_set))).long()
    x, _ = next(batches(image_set.take(spread), data, count, device))
    return x


@dataclass(frozen=True, eq=False)
class InputTransform:
    """Makes uint8 `(batch, channels, height, width)` of any size into normalised float of the input shape."""

    shape: tuple[int, int, int]
    preparation: Preparation
    scale: Tensor
    shift: Tensor
    memory_format: torch.memory_format

    @classmethod
    def of(cls, data: Data, device: torch.device, channels_last: bool = False) -> "InputTransform":
        """For the normalisation of a data set: (x / 255 - mean) / std for each channel."""
        mean, std = torch.tensor(data.mean, device=device), torch.tensor(data.std, device=device)
        return cls(
            data.input_shape,
            data.preparation,
            (1 / (255 * std))[:, None, None],
            (-mean / std)[:, None, None],
            torch.channels_last if channels_last else torch.contiguous_format,
        )

    def __call__(self, images: Tensor) -> Tensor:
        values = fit_shape(images, self.shape, self.preparation)
        return torch.addcmul(self.shift, values, self.scale).contiguous(memory_format=self.memory_format)
