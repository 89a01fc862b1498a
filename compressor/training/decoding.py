"""One image file into an array of bytes for training: as evaluation prepares it, or a random window of it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

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
