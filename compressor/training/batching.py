"""From stored bytes to what a network takes: normalised float batches of its input shape, on its device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.training.resizing import fit_shape
from compressor.vision.preparation import Preparation


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
