"""Random crops and flips of whole batches on the device they lie on."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import UsageError


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every image and epoch."""

    padding: int = 0  # black pixels on every side before the random crop; 0: no crop
    flip: bool = False  # left to right, every second image


def choose_augmentation(name: str, suits: str, padding: int) -> Augmentation:
    """The augmentation that a setting names; "auto" is what suits the data set.

    Raises UsageError for an unknown name or a negative padding.
    """
    known = ("none", "flip", "crop", "crop+flip")
    chosen = suits if name == "auto" else name
    if chosen not in known:
        raise UsageError(f"unknown augmentation {name!r}: choose auto, {', '.join(known)}")
    if padding < 0:
        raise UsageError(f"crop_padding={padding} must be 0 or more pixels")
    return Augmentation(padding if "crop" in chosen else 0, "flip" in chosen)


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
