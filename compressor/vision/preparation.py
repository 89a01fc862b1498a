"""How an image file becomes what a network takes: one description, and the code that follows it.

Evaluation and training use this file, and a package carries a copy of it for the device (`run.py` imports it), so
both prepare an image in the same way. It needs NumPy and Pillow and nothing of compressor's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Extension of a file's name -> the format that it stands for and the only one by which it is opened: Pillow goes by the
# content, and some of its formats start programs (EPS starts Ghostscript). MPO, several JPEGs in one, counts as JPEG.
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".gif": "GIF",
}
# Pillow's own limit against decompression bombs, at which it only warns.
PIXEL_LIMIT = 89_478_485
# Up to this size images are taken whole, from it on without their margin, as published classifiers are evaluated.
_WHOLE_BELOW, _USUAL_CROP = 96, 0.875  # pixels of the shorter side; 224 of 256

Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Pixels = NDArray[np.uint8]


class Unreadable(ValueError):
    """A file that gives no image; the message is the reason."""


# What each of these fields may say; one that may say one thing only is for readers of the description.
CHOICES: dict[str, tuple[object, ...]] = {
    "interpolation": ("bilinear", "bicubic"),
    "antialias": (True,),
    "orientation": ("exif",),
    "background": ("white",),
    "grey": ("ITU-R BT.601",),
}


@dataclass(frozen=True)
class Preparation:
    """How an image is brought to the input shape and the scale of a network.

    An image of exactly the input's height and width is taken as it is. Of any other the largest centred window of the
    input's proportions is taken, of it the inner `crop_pct`, and resized; a slightly smaller one may be framed instead.

    Raises:
        ValueError: a value is out of range.
    """

    mean: tuple[float, ...]  # of each channel, of pixels scaled to 0..1
    std: tuple[float, ...]
    crop_pct: float = 1.0  # share of the window's height and width
    frame: int = 0  # an image that lacks up to so many pixels on a side gets a black frame and is not enlarged
    interpolation: str = "bilinear"
    antialias: bool = True
    orientation: str = "exif"  # rotation and mirroring that EXIF records are undone
    background: str = "white"  # what transparent pixels lie on
    grey: str = "ITU-R BT.601"  # weights of red, green and blue where the network takes one channel

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations: give one of each for a channel")
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"mean {_listed(self.mean)} is not within 0 to 1, to which pixels are scaled")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std {_listed(self.std)} is not above 0")
        if not 0 < self.crop_pct <= 1 or not 0 <= self.frame <= 64:
            raise ValueError(f"crop_pct {self.crop_pct} or frame {self.frame} is out of range")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {str(getattr(self, name))[:40]!r} is not known, only {known}")

    @classmethod
    def usual(cls, height: int, width: int) -> "Preparation":
        """What is done for an input of a height and width where nothing else is known; pixels in 0..1."""
        return cls((0.0,), (1.0,), crop_pct=_USUAL_CROP if min(height, width) >= _WHOLE_BELOW else 1.0)

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> "Preparation":
        """The description in plain data, which may hold more. Raises ValueError where it does not fit."""
        try:
            mean, std = (tuple(float(each) for each in held[name]) for name in ("mean", "std"))
            more = {entry.name: held[entry.name] for entry in fields(cls)[2:] if entry.name in held}
            return cls(mean, std, **more)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the description of how images are prepared is damaged ({error})") from error


def pixels(path: Path | str, shape: tuple[int, int, int], preparation: Preparation) -> Pixels:
    """An image file as bytes `(channels, height, width)`, 1 or 3 channels.

    Raises Unreadable, whatever is wrong with the file.
    """
    return as_array(resized(read(path, shape[0]), (shape[2], shape[1]), preparation))


def normalised(values: Pixels, preparation: Preparation) -> NDArray[np.float32]:
    """Bytes `(channels, height, width)` as the network takes them: (x / 255 - mean) / std for each channel."""
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (preparation.mean, preparation.std))
    result: NDArray[np.float32] = (values.astype(np.float32) / np.float32(255) - mean) / std
    return result


def read(path: Path | str, channels: int) -> Image.Image:
    """An image file upright and whole, in 8-bit grey (1 channel) or colour (3).

    Rotation by EXIF is undone, transparent pixels lie on white, 16-bit grey is scaled to 8. Raises Unreadable.
    """
    try:
        with _opened(path) as opened:
            return _to_mode(_upright(opened), "L" if channels == 1 else "RGB")
    except Unreadable:
        raise
    except Exception as error:  # a broken file can raise anything in Pillow's many readers
        raise Unreadable(_reason(error, path)) from error


def image_size(path: Path | str) -> Size:
    """Width and height from the file's header, as the image stands upright. Raises Unreadable."""
    try:
        with _opened(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations that lie on a side
            sideways = turned and image.format != "TIFF"  # whose size Pillow gives upright
            return (image.height, image.width) if sideways else (image.width, image.height)
    except Unreadable:
        raise
    except Exception as error:  # as in read
        raise Unreadable(_reason(error, path)) from error


def resized(image: Image.Image, size: Size, preparation: Preparation, window: Box | None = None) -> Image.Image:
    """The image in another width and height, as the description says or, with a window, that part of it alone."""
    if window is None and image.size == size:
        return image
    if window is None and is_framed(image.size, size, preparation):
        framed = Image.new(image.mode, size)
        framed.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
        return framed
    method = Image.Resampling[preparation.interpolation.upper()]
    return image.resize(size, method, box=window or middle(image.size, size, preparation.crop_pct))


def is_framed(size: Size, target: Size, preparation: Preparation) -> bool:
    """Whether an image gets a black frame to reach the target's size, instead of being resized."""
    return all(0 <= wanted - own <= 2 * preparation.frame for own, wanted in zip(size, target))


def middle(size: Size, target: Size, share: float) -> Box:
    """The inner `share` of the largest centred window of the target's proportions."""
    scale = min(size[0] / target[0], size[1] / target[1]) * share
    width, height = min(size[0], target[0] * scale), min(size[1], target[1] * scale)  # not over it by rounding
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def as_array(image: Image.Image) -> Pixels:
    """Bytes `(channels, height, width)`."""
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _opened(path: Path | str) -> Image.Image:
    """The file opened by the format that its name stands for, its pixels not yet read."""
    file = Path(path)
    wanted = FORMATS.get(file.suffix.lower())
    if wanted is None:
        raise Unreadable(f"not named as an image: {', '.join(FORMATS)}")
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise Unreadable("not a regular file")
    try:
        image = Image.open(file, formats=(wanted,))
    except UnidentifiedImageError:
        raise Unreadable(_other_format(file, wanted)) from None
    if image.width * image.height > PIXEL_LIMIT:
        image.close()
        raise Unreadable(f"{image.width}x{image.height} pixels, over the limit of {PIXEL_LIMIT:,}")
    return image


def _other_format(file: Path, wanted: str) -> str:
    """What is wrong with a file that is not of the format its name stands for."""
    try:
        with Image.open(file, formats=tuple(set(FORMATS.values()))) as image:
            return f"not a {wanted} image as its name says, but {image.format}: rename it"
    except UnidentifiedImageError:
        return f"not a {wanted} image"


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


def _reason(error: Exception, path: Path | str) -> str:
    """One short line for what Pillow or the system said."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = " ".join(str(error).split()).replace(str(path), "").strip()
    return text or type(error).__name__


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
