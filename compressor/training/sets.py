"""Labelled images in memory, and the split of a set into two with equal shares of every class."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.training.augment import Augmentation, augment
from compressor.training.randomness import derive_seed, generator

# A set whose decoded images take more is read from its files in every epoch instead.
IN_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class Draws:
    """Where the random draws of a batch come from: a batch's place fixes them, so a run can go on in mid-epoch."""

    augmentation: Augmentation
    seed: int
    epoch: int
    start: int = 0  # index in the epoch of the first batch that is asked for
    part: Callable[[int], slice] = slice  # of a batch of so many images, those that are wanted: all

    def seed_of(self, batch: int) -> int:
        """The seed for the n-th batch after `start`."""
        return derive_seed(self.seed, "augment", self.epoch, self.start + batch)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 `(count, channels, height, width)` as they are stored, and labels int64 `(count,)`, in memory.

    `labels` may have further dimensions where a step wants more than a class for each image.
    """

    images: Tensor
    labels: Tensor
    _copies: dict[torch.device, "ImageSet"] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> "ImageSet":
        """The set on a device, copied there once; the set itself where the device has no room for it."""
        if device == self.images.device:
            return self
        if device not in self._copies:
            try:
                self._copies[device] = ImageSet(self.images.to(device), self.labels.to(device))
            except torch.OutOfMemoryError:
                self._copies[device] = self
        return self._copies[device]

    def read(
        self, batches: Sequence[Tensor], device: torch.device, draws: Draws | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of indices `(batch,)`, its uint8 images and its labels on the device.

        With draws the images are augmented, and of every batch only the part that the draws name is read.
        """
        here = self.on(device)
        for number, indices in enumerate(batches):
            part = slice(None) if draws is None else draws.part(len(indices))
            chosen = indices[part].to(here.images.device, non_blocking=True)
            images, labels = here.images[chosen].to(device), here.labels[chosen].to(device)
            if draws is not None:
                source = generator(device, draws.seed_of(number))
                images = augment(images, draws.augmentation, source, part, len(indices))
            yield images, labels

    def take(self, indices: Tensor) -> "ImageSet":
        """The images at some indices, in their order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def with_labels(self, labels: Tensor) -> "ImageSet":
        """The same images under other labels."""
        return ImageSet(self.images, labels)


def split_indices(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the larger and the smaller part of a set, the smaller with about `share` of every class.

    A class of two or more images gives at least one to either part. Both are in ascending order.
    """
    source = generator(torch.device("cpu"), seed, "split")
    smaller = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero().flatten()
        count = min(max(round(share * len(places)), 1), len(places) - 1)
        smaller[places[torch.randperm(len(places), generator=source)[:count]]] = True
    return (~smaller).nonzero().flatten(), smaller.nonzero().flatten()
