"""What a run promises of its result on fresh images: `max_drop`.

The promise is made on images that nothing looks at before: half of the test images, put aside when the data are opened.
Those of the validation set choose epochs and thresholds, and where they were cut out of the training images the network
may have learned from them before it came here. The figures of the report are of the other half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compressor.certify import promised
from compressor.errors import DataError
from compressor.graph.tensors import device_of
from compressor.report.certificate import Certificate
from compressor.report.report import Report
from compressor.runs.folder import MODEL
from compressor.runs.job import RunJob
from compressor.runs.models import open_model
from compressor.runs.settings import PromiseSettings
from compressor.runs.subject import labelled, open_subject
from compressor.training import distributed
from compressor.training.data import AnySet, Data
from compressor.training.evaluate import Predict, evaluate, evaluating, first_output, through_numpy
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
        raise DataError(f"{data.name}: {len(data.test)} test images are too few for a promise: leave out `max_drop`")
    kept, aside = split_indices(data.test.labels, 0.5, seed)
    return replace(data, test=data.test.take(kept)), data.test.take(aside)


class Judge:
    """Judges the networks of several runs of a job: on validation images while one chooses, then on those put aside."""

    def __init__(self, job: RunJob) -> None:
        self.subject = open_subject(job.model, job.data, job.loading, job.training.device)
        assert self.subject.data is not None
        self.data, aside = put_aside(labelled(self.subject.data, "max_drop"), job.loading.seed)
        self.promise = Promise.of(job.promise, aside, self.subject.module, self.data)
        self.before = self._figure(self.subject.module)
        self._figures: dict[str, float] = {}

    def drop(self, folder: str) -> float:
        """What the network of a run loses on the validation images, as a share of them."""
        if folder not in self._figures:
            self._figures[folder] = self._figure(self._opened(folder))
        return self.before - self._figures[folder]

    def cheapest(self, done: Mapping[str, Report]) -> tuple[str | None, Certificate]:
        """The cheapest of the runs that keeps the promise, None where none does, and what is promised.

        Those that a cheaper one beats on validation images are left out, which gives the rest an order before the
        images that were put aside are looked at.
        """
        order: list[str] = []
        for folder in sorted(done, key=lambda each: (done[each].after.macs or 0, self.drop(each))):
            if not order or self.drop(folder) < self.drop(order[-1]):
                order.append(folder)
        order.reverse()
        rows = [right_of(self._opened(folder), self.promise.images, self.data) for folder in order]
        at, certificate = self.promise.kept(rows, self.data)
        return (None if at is None else order[at]), certificate

    def _opened(self, folder: str) -> nn.Module:
        return open_model(Path(folder) / MODEL).module.to(self.subject.device)

    def _figure(self, module: nn.Module) -> float:
        return evaluate(module, self.data.validation, self.data).top1


def right_of(model: nn.Module | Predict, image_set: AnySet, data: Data) -> Tensor:
    """Which images of a set a network has right, bool (images,), on the CPU and in the set's order."""
    return _answers(model, image_set, data)[1].bool()


def differing(model: nn.Module, deepest: nn.Module, image_set: AnySet, data: Data) -> int:
    """How many images of a set two networks give different classes."""
    first, second = (_answers(each, image_set, data)[0] for each in (model, deepest))
    return int((first != second).sum())


def _answers(model: nn.Module | Predict, image_set: AnySet, data: Data) -> Tensor:
    """The class that each image is given, and whether it is right: int64 (2, images)."""
    return distributed.from_first(lambda: _answered(model, image_set, data))


def _answered(model: nn.Module | Predict, image_set: AnySet, data: Data) -> Tensor:
    found = []
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    predict = model if isinstance(model, nn.Module) else through_numpy(model)
    with evaluating(model), torch.no_grad():
        for x, y in data.passing(image_set, device=device):
            named = first_output(predict(x)).argmax(1)
            found.append(torch.stack([named, named == y]).cpu())
    return torch.cat(found, 1)
