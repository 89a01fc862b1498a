"""The early stage as a whole: the block, the pooled projection of its input beside it, both fitted to a size."""

import torch
from torch import Tensor, nn

from compressor.errors import ModelError, UsageError
from compressor.primenet.block import Capsule, PrimeBlock, local_head, start_
from compressor.primenet.settings import SCALES, PrimeNetSettings
from compressor.primenet.shrink import Size, pooling, strided, strides


class PrimeStage(nn.Module):
    """Concatenation of the block's maps and a projection of the images, max-pooled where it has to be smaller.

    (batch, in_channels, height, width) -> (batch, filters + projected, height', width').
    Reference: section 3.3, equation 5; section 4.1 for the projection: max-pool -> convolution -> ReLU. It belongs to
    the classifier and learns from the network's loss (section 3.5).
    """

    def __init__(self, block: PrimeBlock, projection: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.projection = projection
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.block(x), x)

    def join(self, maps: Tensor, x: Tensor) -> Tensor:
        """The stage's output, given what the block handed on for the images `x`."""
        joined: Tensor = self.pool(torch.cat([maps, self.projection(x)], 1))
        return joined


def build_stage(
    image: tuple[int, ...],
    classes: int,
    settings: PrimeNetSettings,
    *,
    filters: int = 64,
    projected: int = 64,
    size: Size | None = None,
) -> PrimeStage:
    """A stage that has not learnt yet, for images of shape `image`, (channels, height, width).

    Its output has `filters` + `projected` channels and maps of `size`, or of the images' own size where that is left
    out. Raises UsageError for scales that a capsule cannot have, ModelError for sizes that cannot be reached.
    """
    scales = tuple(sorted(settings.scales))
    if not scales or len(set(scales)) < len(scales) or not set(scales) <= set(SCALES):
        given = ",".join(map(str, settings.scales))
        raise UsageError(f"--scales {given}: give one or more different ones of {', '.join(map(str, SCALES))}")
    if settings.fit not in ("pool", "stride"):
        raise UsageError(f"--fit {settings.fit}: give pool or stride")
    channels, whole = image[0], (image[1], image[2])
    size = size or whole
    if size[0] > whole[0] or size[1] > whole[1] or min(filters, projected) < 1:
        wanted, given = ("x".join(map(str, shape)) for shape in ((filters + projected, *size), image))
        raise ModelError(f"the block cannot make {wanted} of images of {given}: choose another stage")
    stride = strides(whole, size) if settings.fit == "stride" else (1, 1)
    left = strided(whole, stride)
    capsules = {k: Capsule(channels, filters, k, reduced=settings.reduced, stride=stride) for k in scales}
    heads = {k: local_head(filters, left, classes) for k in scales}
    pool = nn.Identity() if left == size else nn.MaxPool2d(*pooling(left, size))
    return PrimeStage(PrimeBlock(capsules, heads), _projection(channels, projected, stride), pool)


def _projection(channels: int, projected: int, stride: Size) -> nn.Sequential:
    convolution = nn.Conv2d(channels, projected, 1)
    start_(convolution, 0.0)
    return nn.Sequential(nn.MaxPool2d(3, stride, padding=1), convolution, nn.ReLU())
