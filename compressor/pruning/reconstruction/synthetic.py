"""Refit a pruned network without data: on synthetic images, with batch norm telling what the network's own are like.

Dead leaves are discs of random places, sizes and colours, each in front of the last: they have the edges, the flat
parts and the correlations of photographs. A network's activations on them differ from those on its own images, but its
batch norm knows the latter: with statistics of the leaves every channel has, behind the norm, the mean and the variance
that it has on the images of its training.

Reference: Lee, Mumford, Huang, "Occlusion Models for Natural Images", IJCV 41, 2001 (dead leaves); Baradad et al.,
"Learning to See by Looking at Noise", NeurIPS 2021 (as training images). Ours: as images for a reconstruction.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from compressor.graph.skeleton import skeleton
from compressor.training.evaluate import evaluating
from compressor.training.recalibrate import remeasure_

_MOST, _FEWEST = 256, 64  # images
_VALUES = 1 << 24  # of all of them together, if that leaves enough
_BATCH = 32
_LEAVES = 60  # on an image
_SMALLEST, _LARGEST = 0.04, 0.5  # radii, in shares of a side


def synthetic_inputs(example: Any, seed: int = 0) -> list[Tensor]:
    """Batches like the example, a tensor (batch, channels, ...) of one to three dimensions behind; else none."""
    if not isinstance(example, Tensor) or not example.is_floating_point() or not 3 <= example.ndim <= 5:
        return []
    count = max(_FEWEST, min(_MOST, _VALUES // math.prod(example.shape[1:])))
    generator = torch.Generator().manual_seed(seed)
    images = dead_leaves(count, tuple(example.shape[1:]), generator)
    return list(images.to(example.device, example.dtype).split(_BATCH))


def dead_leaves(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(count, channels, *sides) for a shape (channels, *sides): about 0 on average, with variance 1."""
    channels, *sides = shape
    places = torch.meshgrid(*(torch.arange(side) / side for side in sides), indexing="ij")
    middles = torch.rand(len(sides), count, _LEAVES, generator=generator)
    between = torch.rand(count, _LEAVES, generator=generator)
    radii = 1 / torch.lerp(torch.tensor(1 / _LARGEST), torch.tensor(1 / _SMALLEST), between)
    shades = torch.randn(count, 1, _LEAVES, generator=generator)
    shades = shades + 0.3 * torch.randn(count, channels, _LEAVES, generator=generator)
    shades[:, :, 0] = 0  # behind all of them
    images = torch.zeros(count, *shape)
    for image in range(count):
        front = torch.zeros(sides, dtype=torch.int64)
        for leaf in range(1, _LEAVES):
            distance2 = sum((place - at).square() for place, at in zip(places, middles[:, image, leaf], strict=True))
            front.masked_fill_(distance2 < radii[image, leaf].square(), leaf)
        images[image] = shades[image][:, front]
    return images / images.std()


def used_to(model: nn.Module, inputs: list[Tensor]) -> nn.Module | str:
    """A copy of the model whose batch norm has the statistics of the inputs; or why it does not run on them."""
    copied = skeleton(model, real=True)
    try:
        with evaluating(copied), torch.no_grad():
            copied(inputs[0])
    except Exception as error:  # whatever the user's code raises: it ran on the example
        why = " ".join(str(error).split())[:200]
        return f"the network does not run on {len(inputs[0])} images of {tuple(inputs[0].shape[1:])}: {why}"
    remeasure_(copied, inputs)
    return copied
