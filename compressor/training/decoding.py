"""One image file into an array of bytes, whatever the file holds: rotated, transparent, grey, 16-bit, broken."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow's own limit against decompression bombs, at which it only warns.
PIXEL_LIMIT = 89_478_485

Pixels = NDArray[np.uint8]


class Unreadable(Exception):
    """A file that gives no image; the message is the reason."""


def decode(path: Path | str, shape: tuple[int, int, int], seed: int | None = None) -> Pixels:
    """An image file as `(channels, height, width)` of bytes, 1 or 3 channels.

    Rotation by EXIF is undone, transparent pixels lie on white, 16-bit grey is scaled to 8. Without a seed the middle
    of the image is taken (`_middle`), with one a random window of it (`_random_window`), drawn from the seed alone.

    Raises Unreadable, whatever is wrong with the file.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            _check_size(opened)
            image = _upright(opened)
        pixels = _to_mode(image, "L" if channels == 1 else "RGB")
        window = _middle(pixels.size, (width, height)) if seed is None else _random_window(pixels.size, seed)
        if pixels.size != (width, height) or seed is not None:
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR, box=window)
        array = np.asarray(pixels, dtype=np.uint8)
    except Unreadable:
        raise
    except Exception as error:  # a broken file can raise anything in Pillow's many readers
        raise Unreadable(_reason(error, path)) from error
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the file's header, as the image stands upright.

    Raises Unreadable.
    """
    try:
        with Image.open(path) as image:
            _check_size(image)
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations that lie on a side
            return (image.width, image.height) if turned else (image.height, image.width)
    except Unreadable:
        raise
    except Exception as error:  # as in decode
        raise Unreadable(_reason(error, path)) from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > PIXEL_LIMIT:
        raise Unreadable(f"{image.width}x{image.height} pixels, over the limit of {PIXEL_LIMIT:,}")


def _upright(image: Image.Image) -> Image.Image:
    """The image loaded, with its EXIF rotation undone where the EXIF block can be read."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block is no reason to lose a good image
        return image.copy()


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """8-bit grey ("L") or colour ("RGB"), on white where the image is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        values = np.asarray(image, dtype=np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise Unreadable("32-bit integer pixels, whose range is not known")
        image = Image.fromarray((values // 257).astype(np.uint8))
    elif image.mode == "F":
        raise Unreadable("floating-point pixels, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def _middle(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest window of the target's proportions in the middle, as (left, top, right, bottom) in pixels.

    For targets of 96 pixels and more only its inner 7/8, which is what a shorter side resized to 256 and cropped to 224
    comes to.
    """
    scale = min(size[0] / target[0], size[1] / target[1])
    if size != target and min(target) >= 96:
        scale *= 0.875
    width, height = target[0] * scale, target[1] * scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def _random_window(size: tuple[int, int], seed: int) -> tuple[float, float, float, float]:
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
    return _middle(size, size)


def _reason(error: Exception, path: Path | str) -> str:
    """One short line for what Pillow or the system said."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "gone"
    text = " ".join(str(error).split()).replace(str(path), "").strip()
    return text or type(error).__name__
