"""Images of one size and number of channels as a network of another takes them."""

import torch
from torch import Tensor
from torch.nn import functional

Shape = tuple[int, int, int]  # channels, height, width

FRAME = 4  # pixels: up to so many a side are added in black, more are made up by resizing
# A grey level as Pillow and ITU-R BT.601 weigh red, green and blue.
_LUMINANCE = (0.299, 0.587, 0.114)


def fit_shape(images: Tensor, shape: Shape) -> Tensor:
    """Float images `(batch, channels, height, width)` with the channels, height and width of `shape`.

    Grey is repeated for every channel, colour becomes its luminance. Images that are smaller by up to 4 pixels on a
    side are framed in black (MNIST's 28 in 32), all others resized bilinearly.
    """
    channels, height, width = shape
    if images.shape[1] != channels:
        if images.shape[1] == 3:
            weights = torch.tensor(_LUMINANCE, device=images.device)[None, :, None, None]
            images = (images * weights).sum(1, keepdim=True)
        images = images.expand(-1, channels, -1, -1)
    size = (images.shape[2], images.shape[3])
    if size == (height, width):
        return images
    if is_framed(size, (height, width)):
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return functional.pad(images, (left, width - size[1] - left, top, height - size[0] - top))
    return functional.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)


def is_framed(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether images of a height and width get a black frame to reach the target's, instead of being resized."""
    return all(0 <= wanted - own <= 2 * FRAME for own, wanted in zip(size, target))


def describe_fit(stored: Shape, shape: Shape) -> str:
    """What `fit_shape` does to images of a stored shape, in words."""
    done = []
    if stored[1:] != shape[1:]:
        done.append("framed in black" if is_framed(stored[1:], shape[1:]) else "resized bilinearly")
    if stored[0] != shape[0]:
        done.append("colour reduced to grey" if stored[0] == 3 else "grey repeated")
    return f"images of {format_shape(stored)} are given to the model as {format_shape(shape)}: {', '.join(done)}"


def format_shape(shape: Shape) -> str:
    """A shape as the command line writes it, 3x32x32."""
    return "x".join(str(size) for size in shape)
