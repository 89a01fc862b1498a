"""From stored bytes to what a network takes: normalised float batches of its input shape, on its device, augmented."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import UsageError
from compressor.report import units
from compressor.training.settings import DataSettings
from compressor.vision.preparation import Preparation, is_framed, middle

Shape = tuple[int, int, int]  # channels, height, width

CROP_PADDING = 4  # pixels of black on every side, of which the random crop takes some
FRAME = 4  # pixels: named data sets that lack up to so many on a side are framed (MNIST's 28 in 32), not enlarged


def fit_shape(images: Tensor, shape: Shape, preparation: Preparation) -> Tensor:
    """Images `(batch, channels, height, width)` of whole numbers 0..255, uint8 or float, in the channels, height and
    width of `shape`, as floats.

    What `preparation.pixels` does to one image on the CPU, here for a batch on its device. Values may differ by 1 or 2:
    Pillow rounds after each of two passes, whose order is its version's.
    """
    channels, height, width = shape
    values = images.float()
    if values.shape[1] != channels:
        values = (_grey(values) if values.shape[1] == 3 else values).expand(-1, channels, -1, -1)
    size, target = (values.shape[3], values.shape[2]), (width, height)
    if size == target:
        return values
    if is_framed(size, target, preparation):
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        frame = (left, width - size[0] - left, top, height - size[1] - top)
        return torch.nn.functional.pad(values, frame)
    left_edge, upper, right_edge, lower = middle(size, target, preparation.crop_pct)
    across = _weights(size[0], width, (left_edge, right_edge), preparation.interpolation).to(values.device)
    down = _weights(size[1], height, (upper, lower), preparation.interpolation).to(values.device)
    return _rounded(down @ _rounded(values @ across.T))


def preparation_for(preparation: Preparation, stored: Shape, shape: Shape) -> Preparation:
    """The same for images of a stored shape that are given to a network of another: a small difference is framed."""
    framed = replace(preparation, frame=FRAME)
    return framed if stored[1:] != shape[1:] and is_framed(stored[1:], shape[1:], framed) else preparation


def with_normalisation(preparation: Preparation, loading: DataSettings, channels: int) -> Preparation:
    """The same with the mean and deviation that the settings give, if any, one number meaning every channel.

    Raises UsageError where one is missing, there are too many or too few, or a value is out of range.
    """
    if loading.mean is None and loading.std is None:
        return preparation
    mean, std = loading.mean or (), loading.std or ()
    if any(len(values) not in (1, channels) for values in (mean, std)):
        raise UsageError(
            f"the model takes {channels} channels: give `mean` and `std` with {channels} numbers each, or one for all"
        )
    try:
        given = replace(preparation, mean=per_channel(mean, channels), std=per_channel(std, channels))
    except ValueError as error:
        raise UsageError(f"`mean` and `std`: {error}") from error
    return given


def with_channels(preparation: Preparation, channels: int) -> Preparation:
    """The same for another number of channels: grey's mean and deviation repeated, those of colours averaged."""
    mean, std = (per_channel(values, channels) for values in (preparation.mean, preparation.std))
    return replace(preparation, mean=mean, std=std)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value for each channel, or their mean for every one."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


def describe_fit(stored: Shape, shape: Shape, preparation: Preparation) -> str:
    """What `fit_shape` does to images of a stored shape, in words."""
    done = []
    if stored[1:] != shape[1:]:
        resized = f"resized ({preparation.interpolation})"
        done.append("framed in black" if is_framed(stored[1:], shape[1:], preparation) else resized)
    if stored[0] != shape[0]:
        done.append("colour reduced to grey" if stored[0] == 3 else "grey repeated")
    return f"images of {units.shape(stored)} are given to the model as {units.shape(shape)}: {', '.join(done)}"


def _grey(images: Tensor) -> Tensor:
    """Pillow's luminance of ITU-R BT.601, in whole numbers."""
    red, green, blue = images.long().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).float()[:, None]


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255)


@functools.lru_cache(maxsize=64)
def _weights(length: int, size: int, window: tuple[float, float], interpolation: str) -> Tensor:
    """The matrix `(size, length)` that resamples a part of a line of pixels, as Pillow does it: a filter over the
    distance from each new pixel's centre, as wide as the line is reduced."""
    scale = (window[1] - window[0]) / size
    reach = max(scale, 1.0)
    centres = window[0] + (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    offsets = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]) / reach
    kernel, support = _FILTERS[interpolation]
    first = (centres - support * reach + 0.5).clamp(min=0).floor()[:, None]
    last = (centres + support * reach + 0.5).clamp(max=length).floor()[:, None]
    places = torch.arange(length)
    weights = torch.where((places >= first) & (places < last), kernel(offsets.abs()), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()


def _bilinear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _bicubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


_FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every image and epoch."""

    padding: int = 0  # black pixels on every side before the random crop; 0: no crop
    flip: bool = False  # left to right, every second image


def choose_augmentation(name: str, suits: str) -> Augmentation:
    """The augmentation that a setting names; "auto" is what suits the data set."""
    chosen = suits if name == "auto" else name
    return Augmentation(CROP_PADDING if "crop" in chosen else 0, "flip" in chosen)


def augment(
    images: Tensor, augmentation: Augmentation, generator: torch.Generator, part: slice | None = None, whole: int = 0
) -> Tensor:
    """A batch `(batch, channels, height, width)`, uint8, each image moved by up to `padding` pixels and perhaps
    mirrored; where the images are only a part of a batch of `whole`, as they would be in the whole one.

    Reference: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2 (padding 4, crop, flip).
    """
    device = images.device
    part, whole = (slice(len(images)), len(images)) if part is None else (part, whole)
    if augmentation.padding:
        reach, (height, width) = augmentation.padding, images.shape[2:]
        padded = functional.pad(images, (reach, reach, reach, reach))
        # Every possible crop as a view (batch, channels, rows, columns, height, width), of which each image takes one.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        row, column = torch.randint(2 * reach + 1, (2, whole), generator=generator, device=device)[:, part]
        images = crops[torch.arange(len(images), device=device), :, row, column]
    if augmentation.flip:
        mirrored = torch.randint(2, (whole, 1, 1, 1), generator=generator, device=device, dtype=torch.bool)
        images = torch.where(mirrored[part], images.flip(3), images)
    return images


@dataclass(frozen=True, eq=False)
class InputTransform:
    """Makes uint8 `(batch, channels, height, width)` of any size into normalised float of the input shape."""

    shape: tuple[int, int, int]
    preparation: Preparation
    scale: Tensor
    shift: Tensor
    memory_format: torch.memory_format

    @classmethod
    def of(
        cls, shape: tuple[int, int, int], preparation: Preparation, device: torch.device, channels_last: bool = False
    ) -> "InputTransform":
        """For inputs of a shape: (x / 255 - mean) / std for each channel, as the preparation says."""
        mean, std = torch.tensor(preparation.mean, device=device), torch.tensor(preparation.std, device=device)
        return cls(
            shape,
            preparation,
            (1 / (255 * std))[:, None, None],
            (-mean / std)[:, None, None],
            torch.channels_last if channels_last else torch.contiguous_format,
        )

    def __call__(self, images: Tensor) -> Tensor:
        values = fit_shape(images, self.shape, self.preparation)
        return torch.addcmul(self.shift, values, self.scale).contiguous(memory_format=self.memory_format)
