"""A folder of images that is too large for memory: worker processes decode the batches while others are trained on."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compressor.errors import DataError
from compressor.report.environment import usable_cores
from compressor.training.batching import Augmentation, augment, per_channel
from compressor.training.decoding import SPARE, DecodeCache, decode, whole, window_of
from compressor.training.numerics import derive_seed, generator
from compressor.training.sets import Draws
from compressor.vision.preparation import Pixels, Preparation, Unreadable

# Channel means and deviations of ImageNet's photographs.
PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Decoded = tuple[Tensor, Tensor, list[tuple[str, str]]]  # images, labels, (path, reason) of those that are left out


def processor_count() -> int:
    """Processors that this process may use, 8 at most."""
    return min(8, usable_cores())


@dataclass(frozen=True, eq=False)
class FolderSet:
    """Image files and their labels, read anew in every epoch; offers what `ImageSet` offers but for `images`."""

    paths: NDArray[np.bytes_]  # one block of memory: strings would be copied page by page into every worker
    labels: Tensor
    shape: tuple[int, int, int]
    preparation: Preparation
    report: Callable[[str, str], None]
    rows: Tensor  # the number of each file in the cache
    cache: DecodeCache | None = None
    windows: bool = False  # the cache holds whole images, for random windows of them

    @classmethod
    def of(
        cls,
        paths: Sequence[Path],
        labels: Sequence[int],
        shape: tuple[int, int, int],
        preparation: Preparation,
        report: Callable[[str, str], None],
    ) -> "FolderSet":
        """A set over files; `report(path, reason)` is told of every image that cannot be read."""
        names = np.array([os.fsencode(path) for path in paths])
        return cls(names, torch.tensor(labels), shape, preparation, report, torch.arange(len(paths)))

    def cached(self, most: float, *, windows: bool) -> "FolderSet":
        """The same, which keeps what is decoded on disk, in so many bytes: with `windows` for random windows."""
        channels, height, width = self.shape
        shape = (round(SPARE * height), round(SPARE * width), channels) if windows else self.shape
        cache = DecodeCache.of(self.paths.tolist(), shape, f"{self.preparation} {windows}", most)
        return replace(self, cache=cache, windows=windows)

    def __len__(self) -> int:
        return len(self.labels)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As `ImageSet.normalisation`, but of ImageNet's photographs: the set is too large to measure."""
        mean, std = (per_channel(values, self.shape[0]) for values in PHOTOGRAPHS)
        return mean, std

    def take(self, indices: Tensor) -> "FolderSet":
        """The files at some indices, in their order."""
        rows = self.rows[indices]
        return replace(self, paths=self.paths[indices.numpy()], labels=self.labels[indices], rows=rows)

    def with_labels(self, labels: Tensor) -> "FolderSet":
        """The same files under other labels."""
        return replace(self, labels=labels)

    def read(
        self, batches: Sequence[Tensor], device: torch.device, draws: Draws | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of indices, its uint8 images and its labels on the device, without the unreadable ones.

        With draws the images are augmented, and of every batch only the part that the draws name is read.
        Raises DataError when a whole batch is unreadable or a worker dies.
        """
        loader = self._loader(_Batches(self, batches, draws), len(batches), device)
        iterator = iter(loader)
        for number in range(len(batches)):
            try:
                images, labels, bad = next(iterator)
            except RuntimeError as error:
                raise DataError(f"a worker that reads images died ({' '.join(str(error).split())})") from error
            for path, reason in bad:
                self.report(path, reason)
            if not len(labels):
                raise DataError(f"none of {len(bad)} images can be read, such as {bad[0][0]}: {bad[0][1]}")
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if draws is not None:
                flip = Augmentation(flip=draws.augmentation.flip)  # the crop was made while decoding
                begin, whole = draws.part(len(batches[number])).start or 0, len(batches[number])
                part = slice(begin, begin + len(images))  # fewer than were asked for where some are unreadable
                images = augment(images, flip, generator(device, draws.seed_of(number)), part, whole)
            yield images, labels

    def _loader(self, batches: "_Batches", count: int, device: torch.device) -> DataLoader[Decoded]:
        workers = processor_count() if count > 2 else 0
        settings: dict[str, Any] = {}
        if workers and sys.platform == "linux":
            settings["multiprocessing_context"] = "fork"  # a script without a main guard works, and starts at once
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=_prepare_worker,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one, and a resumed run would differ
            **settings,
        )


class _Batches(Dataset[Decoded]):
    """What a worker runs: item i is the whole i-th batch."""

    def __init__(self, files: FolderSet, batches: Sequence[Tensor], draws: Draws | None) -> None:
        self.paths, self.labels, self.rows = files.paths, files.labels, files.rows
        self.shape, self.preparation = files.shape, files.preparation
        self.cache, self.windows = files.cache, files.windows
        self.batches, self.draws = batches, draws

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Decoded:
        whole = self.batches[number]
        part = slice(None) if self.draws is None else self.draws.part(len(whole))
        indices, begin = whole[part], part.start or 0
        seed = self.draws.seed_of(number) if self.draws is not None and self.draws.augmentation.padding else None
        images, kept, bad = [], [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what cannot be read is reported
            for position, index in enumerate(indices.tolist()):
                path = os.fsdecode(self.paths[index])
                own = None if seed is None else derive_seed(seed, begin + position)
                try:
                    images.append(self._decoded(index, path, own))
                    kept.append(position)
                except Unreadable as error:
                    bad.append((path, str(error)))
        stacked = np.stack(images) if images else np.empty((0, *self.shape), dtype=np.uint8)
        return torch.from_numpy(stacked), self.labels[indices[kept]], bad

    def _decoded(self, index: int, path: str, seed: int | None) -> Pixels:
        shape, preparation, cache = self.shape, self.preparation, self.cache
        if cache is None or self.windows != (seed is not None):
            return decode(path, shape, preparation, seed)
        row = int(self.rows[index])
        if seed is None:
            return cache.get(row, lambda: ((0, 0), decode(path, shape, preparation)))[1]
        high, wide, channels = cache.shape
        size, kept = cache.get(row, lambda: whole(path, (wide, high), channels, preparation))
        return window_of(kept, size, shape, preparation, seed)


def _prepare_worker(worker: int) -> None:
    """Ctrl-C reaches the whole process group: the main process decides when its workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
