"""Image files as arrays of bytes for training, and decoded images on disk, for folders too large for memory.

The latter are a file of records, memory-mapped, one for each image; the worker that is the first to want an image
writes its record. Whole images are prepared as for evaluation; those of which random windows are taken are kept whole,
squashed to SPARE times the network's size.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from compressor.errors import FileError, cause
from compressor.files.paths import own_folder
from compressor.vision.preparation import Box, Pixels, Preparation, Size, as_array, middle, pixels, read, resized


def decode(
    path: Path | str, shape: tuple[int, int, int], preparation: Preparation | None = None, seed: int | None = None
) -> Pixels:
    """An image file as `(channels, height, width)` of bytes, 1 or 3 channels.

    Without a seed it is prepared as for evaluation; with one a random window of it is resized, drawn from the seed
    alone. Raises Unreadable, whatever is wrong with the file.
    """
    preparation = preparation or Preparation.usual(shape[1], shape[2])
    if seed is None:
        return pixels(path, shape, preparation)
    image = read(path, shape[0])
    return as_array(resized(image, (shape[2], shape[1]), preparation, _random_window(image.size, seed)))


def whole(path: Path | str, side: Size, channels: int, preparation: Preparation) -> tuple[Size, Pixels]:
    """An image file's width and height, and all of it in another, as bytes `(height, width, channels)`.

    Raises Unreadable.
    """
    image = read(path, channels)
    kept = resized(image, side, preparation, (0.0, 0.0, float(image.width), float(image.height)))
    return image.size, np.asarray(kept, dtype=np.uint8).reshape(side[1], side[0], channels)


def window_of(kept: Pixels, size: Size, shape: tuple[int, int, int], preparation: Preparation, seed: int) -> Pixels:
    """The random window of `decode`, taken out of what `whole` gave of an image of this width and height."""
    image = Image.fromarray(kept[:, :, 0] if shape[0] == 1 else kept)
    left, top, right, bottom = _random_window(size, seed)
    across, down = image.width / size[0], image.height / size[1]
    box = left * across, top * down, min(right * across, image.width), min(bottom * down, image.height)
    return as_array(resized(image, (shape[2], shape[1]), preparation, box))


def _random_window(size: Size, seed: int) -> Box:
    """A window of 8 to 100 % of the area and proportions from 3/4 to 4/3, as (left, top, right, bottom) in pixels.

    Reference: Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.
    """
    source = torch.Generator().manual_seed(seed)
    width, height = size
    for _ in range(10):
        area, ratio, across, down = torch.rand(4, generator=source).tolist()
        area = (0.08 + 0.92 * area) * width * height
        ratio = (3 / 4) ** (1 - 2 * ratio)  # from 3/4 to 4/3, uniform in its logarithm
        wide, high = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if wide <= width and high <= height:
            left, top = across * (width - wide), down * (height - high)
            return left, top, left + wide, top + high
    return middle(size, size, 1.0)


SPARE = 1.25
_PIXELS = "pixels"


def place() -> Path:
    """$XDG_CACHE_HOME/compressor/decoded (~/.cache where that is not set)."""
    return own_folder("XDG_CACHE_HOME", ".cache") / "decoded"


@dataclass(frozen=True, eq=False)
class DecodeCache:
    """The images of a list of files, as many of them as fit."""

    file: Path
    shape: tuple[int, int, int]
    record: np.dtype[Any]  # a checksum, zero where nothing is kept; width and height of the whole image; its bytes
    count: int
    _open: list[Any] = field(default_factory=list, repr=False)  # the mapping, made in each process that reads

    @classmethod
    def of(cls, files: Sequence[bytes], shape: tuple[int, int, int], told: str, most: float) -> "DecodeCache":
        """Of arrays of a shape; `told` says how they are made, `most` how many bytes they may take.

        The file is found again for the same images, unchanged and made in the same way.

        Raises:
            FileError: there is no room for it, or it cannot be written.
        """
        record = np.dtype([("check", "<u4"), ("size", "<u4", 2), (_PIXELS, "u1", shape)])
        count = min(len(files), int(most // record.itemsize))
        key = hashlib.sha256(f"{shape} {told}".encode())
        for name in files:
            key.update(b"%b %d %d\0" % (name, *_state(Path(os.fsdecode(name)))))
        file = place() / f"{key.hexdigest()[:32]}.bin"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as held:
                if held.tell() < count * record.itemsize:
                    _reserve(held, count * record.itemsize)
        except OSError as error:
            raise FileError(
                f"the decode cache {file} cannot be written ({cause(error)}): leave `decode_cache` out"
            ) from error
        return cls(file, shape, record, count)

    def get(self, number: int, make: Callable[[], tuple[tuple[int, int], Pixels]]) -> tuple[tuple[int, int], Pixels]:
        """Size and bytes of an image, made where they are not kept or damaged."""
        if number >= self.count:
            return make()
        if not self._open:
            self._open.append(np.memmap(self.file, self.record, "r+", shape=self.count))
        row = self._open[0][number]
        check = int(row["check"])
        if check and check == _checksum(row):
            return (int(row["size"][0]), int(row["size"][1])), np.array(row[_PIXELS])
        size, pixels = make()
        row["size"], row[_PIXELS] = size, pixels
        row["check"] = _checksum(row)
        return size, pixels


def _state(file: Path) -> tuple[int, int]:
    """Size and time of a file; of a broken link, which is reported when it is read, none."""
    try:
        about = file.stat()
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def _reserve(held: IO[bytes], size: int) -> None:
    """Room for all of it: a hole that finds none later would kill the worker that writes there."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(held.fileno(), 0, size)
    else:
        held.truncate(size)


def _checksum(row: Any) -> int:
    return zlib.crc32(row[_PIXELS], zlib.crc32(row["size"].tobytes())) or 1
