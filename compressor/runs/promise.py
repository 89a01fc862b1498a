"""What a run promises of its result on fresh images: `max_drop`.

The promise is made on images that nothing looks at before: half of the test images, put aside when the data are opened.
Those of the validation set choose epochs and thresholds, and where they were cut out of the training images the network
may have learned from them before it came here. The figures of the report are of the other half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from compressor.certify import promised
from compressor.errors import DataError
from compressor.graph.tensors import device_of
from compressor.report.certificate import Certificate
from compressor.runs.settings import PromiseSettings
from compressor.training import distributed
from compressor.training.data import AnySet, Data
from compressor.training.evaluate import Predict, evaluating, first_output
from compressor.training.sets import split_indices


@dataclass(frozen=True)
class Promise:
    """Images put aside, and which of them the network had right as it came."""

    settings: PromiseSettings
    images: AnySet
    before: Tensor  # bool (images,)

    @classmethod
    def of(cls, settings: PromiseSettings, images: AnySet, module: nn.Module, data: Data) -> "Promise":
        """Before anything is changed."""
        return cls(settings, images, right_of(module, images, data))

    def kept(self, rows: Sequence[Tensor], data: Data, otherwise: str = "") -> tuple[int | None, Certificate]:
        """Which is the cheapest of some candidates that keeps it, None where none does, and what is promised.

        `rows` is what each candidate has right, from the safest to the cheapest; their order must not depend on these
        images.
        """
        asked = self.settings.max_drop
        assert asked is not None
        return promised(
            self.images.labels, self.before, list(map(np.asarray, rows)), data.classes,
            drop=asked, confidence=self.settings.confidence, otherwise=otherwise,
        )  # fmt: skip


def put_aside(data: Data, seed: int) -> tuple[Data, AnySet]:
    """The data with half of their test images, and the other half of every class, to make a promise on.

    Raises DataError where there are too few to divide.
    """
    if len(data.test) < 2 * len(data.test.labels.unique()):
        raise DataError(f"{data.name}: {len(data.test)} test images are too few for a promise: leave out max_drop")
    kept, aside = split_indices(data.test.labels, 0.5, seed)
    return replace(data, test=data.test.take(kept)), data.test.take(aside)


def right_of(model: nn.Module | Predict, image_set: AnySet, data: Data) -> Tensor:
    """Which images of a set a network has right, bool (images,), on the CPU and in the set's order."""
    return distributed.from_first(lambda: _right(model, image_set, data))


def _right(model: nn.Module | Predict, image_set: AnySet, data: Data) -> Tensor:
    found = []
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    with evaluating(model), torch.no_grad():
        for x, y in data.passing(image_set, device=device):
            scores = first_output(model(x)) if isinstance(model, nn.Module) else torch.as_tensor(model(x.numpy()))
            found.append((scores.argmax(1) == y).cpu())
    return torch.cat(found)
