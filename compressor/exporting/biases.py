"""Make up for what rounded weights take off the mean output of a layer, in its bias, before any quantizer runs.

Reference: Nagel, van Baalen, Blankevoort and Welling 2019, Data-Free Quantization, section 4.2 (empirical correction).
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from compressor.exporting.quantize import IMAGE_CHANNELS, SCHEMES, Chip
from compressor.exporting.samples import reference_of
from compressor.training.task import called, examples_in, taken

_BATCH = 8  # images at a time
_LAYERS = (nn.Conv2d.forward, nn.Linear.forward)  # those of other classes may do more with their weights than multiply


@torch.no_grad()
def correct_biases(reference: nn.Module, images: Any, chip: Chip | None) -> nn.Module:
    """A copy in which every layer is corrected that runs once and whose weights will be rounded.

    A layer is linear: its mean output is that of the mean of what it reads. A convolution that reads an image is left
    alone, since most runtimes keep its weights. Batch norms behind a layer do not matter: they scale the steps as well.

    Args:
        reference: the network as it is exported.
        images: that it is calibrated on, or a tuple or dict of inputs.
        chip: that it is rounded for; None: by a runtime's own quantizer, a channel's weights to 127 steps either way.
    """
    module, steps = reference_of(reference), 127 if chip is None else SCHEMES[chip].steps
    if steps is None:
        return module
    sums, runs = dict[nn.Module, Tensor](), Counter[nn.Module]()

    def add(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        runs[layer] += 1
        before = sums.get(layer)
        total = given[0].sum(0, keepdim=True)
        if before is None or before.shape == total.shape:
            sums[layer] = total if before is None else before + total

    layers = [layer for layer in module.modules() if type(layer).forward in _LAYERS and "weight" in layer._parameters]
    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    count = examples_in(images)
    pieces = [taken(images, slice(start, start + _BATCH)) for start in range(0, count, _BATCH)]
    for piece in pieces:
        called(module, piece)
    for hook in hooks:
        hook.remove()
    for layer, total in sums.items():
        reads_image = isinstance(layer, nn.Conv2d) and layer.in_channels <= IMAGE_CHANNELS
        if runs[layer] == len(pieces) and not reads_image:
            _correct_(layer, total / count, steps)
    return module


def _correct_(layer: nn.Module, mean: Tensor, steps: int) -> None:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    largest = weight.flatten(1).abs().amax(1).clamp(min=1e-12).view(-1, *[1] * (weight.dim() - 1))
    lost = weight - (weight * steps / largest).round() * largest / steps
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    values = {"weight": lost} if bias is None else {"weight": lost, "bias": torch.zeros_like(bias)}
    error: Tensor = torch.func.functional_call(layer, values, (mean,))
    channel = 1 if isinstance(layer, nn.Conv2d) else error.dim() - 1
    error = error.transpose(0, channel).flatten(1).mean(1)
    layer.bias = nn.Parameter(error if bias is None else bias + error)
