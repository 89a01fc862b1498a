"""Labelled images in memory, their split with equal shares of every class, and the data sets that have a name."""

import gzip
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.training.batching import Augmentation, augment
from compressor.training.numerics import derive_seed, generator

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: (channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of the pixels in 0..1, from exact counts of the 256 levels."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in range(self.images.shape[1]):
            counts: Tensor = torch.bincount(self.images[:, channel].flatten(), minlength=256).double()
            mean = (counts * levels).sum() / counts.sum()
            variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
            means.append(float(mean))
            stds.append(max(float(variance.sqrt()), 1 / 255))  # images of one colour have no deviation to divide by
        return tuple(means), tuple(stds)

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


DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class NamedSet:
    """A set as its files hold it, before any validation split."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    suits: str  # the augmentation that is customary for it


def read_digits() -> NamedSet:
    """scikit-learn's embedded digits: 1,797 real 8x8 grey images; a fixed fifth of every class is the test set."""
    bunch = _digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    every = ImageSet(images, torch.from_numpy(bunch.target.astype(np.int64)))
    train, test = split_indices(every.labels, 0.2, seed=0)
    return NamedSet(every.take(train), every.take(test), DIGITS, "none")


@cache
def _digits() -> Any:
    """As scikit-learn has them; a sweep opens them for every run, and they are a text of 1,797 lines."""
    from sklearn.datasets import load_digits

    return load_digits()


def read_mnist(root: Path, download: bool) -> NamedSet:
    """MNIST from its four IDX files, packed or not, in ROOT/MNIST/raw, ROOT/raw or ROOT."""
    train, test = _read_idx_pair("mnist", "MNIST", root, download)
    return NamedSet(train, test, DIGITS, "none")


def read_fashion_mnist(root: Path, download: bool) -> NamedSet:
    """Fashion-MNIST from its four IDX files, packed or not, in ROOT/FashionMNIST/raw, ROOT/raw or ROOT."""
    train, test = _read_idx_pair("fashion-mnist", "FashionMNIST", root, download)
    return NamedSet(train, test, FASHION, "flip")


def read_cifar10(root: Path, download: bool) -> NamedSet:
    """CIFAR-10 from ROOT/cifar-10-batches-py."""
    return _read_cifar("cifar10", "CIFAR10", root, download)


def read_cifar100(root: Path, download: bool) -> NamedSet:
    """CIFAR-100, fine labels, from ROOT/cifar-100-python."""
    return _read_cifar("cifar100", "CIFAR100", root, download)


def read_svhn(root: Path, download: bool) -> NamedSet:
    """SVHN's cropped digits from ROOT/train_32x32.mat and ROOT/test_32x32.mat."""
    files = [root / "train_32x32.mat", root / "test_32x32.mat"]
    train, test = (
        _from_torchvision("svhn", "SVHN", files, root=str(root), split=split, download=download)
        for split in ("train", "test")
    )
    sets = [ImageSet(torch.from_numpy(s.data), torch.from_numpy(s.labels.astype(np.int64))) for s in (train, test)]
    return NamedSet(sets[0], sets[1], DIGITS, "crop")  # a mirrored digit is another or none


def read_idx(path: Path) -> Tensor:
    """The bytes of an IDX file, gzip-packed or not, as a uint8 tensor of the shape its header states.

    Raises DataError for a file that is not IDX, holds other numbers than bytes, or is shorter or longer than it says.
    """
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8 or not 1 <= dimensions <= 4:
                raise DataError(f"{path} is not an IDX file of bytes: replace it by the original")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            count = int(np.prod(shape, dtype=object))
            if count > 1 << 33:
                raise DataError(f"{path} claims {count:,} bytes of images: replace it by the original")
            content = file.read(count + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): replace it by the original") from error
    if len(content) != count:
        raise DataError(f"{path} is damaged (not the {count:,} bytes that its header states): replace it")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def _read_idx_pair(spec: str, folder: str, root: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if download and not _find_idx(root, folder, names[0]):
        _from_torchvision(spec, folder, [], root=str(root), download=True)
    found = [_find_idx(root, folder, name) for name in names]
    missing = [name for name, path in zip(names, found) if path is None]
    if missing:
        raise DataError(
            f"{spec}:{root} lacks {', '.join(missing)} (looked in {folder}/raw, raw and the folder itself, with and "
            f"without .gz): give the folder that holds them, or add `download`"
        )
    tensors = [read_idx(path) for path in found if path is not None]
    sets = []
    for images, labels in (tensors[:2], tensors[2:]):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(images) == 0 or labels.max() > 9:
            raise DataError(f"{spec}:{root} holds images and labels that do not belong together: replace the files")
        sets.append(ImageSet(images[:, None], labels.long()))
    return sets[0], sets[1]


def _find_idx(root: Path, folder: str, name: str) -> Path | None:
    places = [place / (name + end) for place in (root / folder / "raw", root / "raw", root) for end in ("", ".gz")]
    return next((place for place in places if place.is_file()), None)


def _read_cifar(spec: str, kind: str, root: Path, download: bool) -> NamedSet:
    from compressor.vision import door as vision

    published = getattr(vision.datasets, kind)
    files = [root / published.base_folder / name for name, _ in published.train_list + published.test_list]
    train, test = (
        _from_torchvision(spec, kind, files, root=str(root), train=train, download=download) for train in (True, False)
    )
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    sets = [ImageSet(image, torch.tensor(part.targets)) for image, part in zip(images, (train, test))]
    return NamedSet(sets[0], sets[1], tuple(train.classes), "crop+flip")


def _from_torchvision(spec: str, kind: str, files: list[Path], **arguments: Any) -> Any:
    """One of torchvision's data sets; it compares the files' checksums with the published ones before it opens them."""
    from compressor.vision import door as vision

    try:
        with warnings.catch_warnings():
            # NumPy 2.4 warns about how the published pickles spell an argument of theirs.
            warnings.filterwarnings("ignore", message=".*align should be passed")
            return getattr(vision.datasets, kind)(**arguments)
    except (RuntimeError, OSError) as error:
        root, missing = arguments["root"], [file for file in files if not file.is_file()]
        if arguments["download"]:
            raise DataError(f"{spec}:{root} could not be downloaded ({error}): fetch it by hand") from error
        if missing:
            raise DataError(f"{spec}:{root} lacks {missing[0]}: give the folder above it, or add `download`") from error
        raise DataError(f"{spec}:{root} is damaged (its files lack the published checksums): fetch it again") from error
