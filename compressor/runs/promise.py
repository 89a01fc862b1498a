"""What a run promises of its result on fresh images: `max_drop`. Of a user's own figure it is a bootstrap estimate.

The promise is made on images that nothing looks at before: half of the test images, put aside when the data are opened.
Those of the validation set choose epochs and thresholds, and where they were cut out of the training images the network
may have learned from them before it came here. The figures of the report are of the other half.

How sure a difference of two networks in a user's own figure is, samples of its data tell, drawn with replacement.
Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", chapters 6 and 13.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compressor.certify import estimated, promised
from compressor.errors import DataError, UsageError
from compressor.exporting.runtime import OnnxModel
from compressor.graph.tensors import device_of
from compressor.report.manifest import MANIFEST
from compressor.report.measurements import Certificate
from compressor.runs.folder import MODEL, ONNX
from compressor.runs.job import RunJob
from compressor.runs.models import open_model
from compressor.runs.settings import PromiseSettings
from compressor.runs.subject import Subject, open_subject
from compressor.training import distributed
from compressor.training.data import AnySet, Data
from compressor.training.evaluate import Predict, evaluate, evaluating, placed, which_right
from compressor.training.own_part import Part
from compressor.training.own_task import OwnTask
from compressor.training.task import Pair, Task, first_output

FEWEST = 20  # examples or batches to draw from


@distributed.by_first
def resampled(model: nn.Module | Predict, part: Part, task: OwnTask, samples: int) -> NDArray[np.float64]:
    """The main figure on a part, and then on so many samples of its examples; of a user's own batches, of its batches.

    The same are drawn for every model, so that differences are paired. The model runs once: what it gave is stored and
    given again.

    Raises:
        DataError: there are too few to draw from.
        UsageError: `measure` cannot be told again what the model gave.
    """
    _, device = placed(model)
    with evaluating(model), torch.no_grad():
        held = Recorded(model, list(task.passing(part, 1, device)), task)
        found = [held.figure()]
        if not all(held.outputs) or held.figure(range(len(held.pairs))) != found[0]:
            raise UsageError(
                f"{task.name}: measure cannot be repeated on what the model gave for each batch, in the batches' order "
                "and the same every time, which a promise needs: leave out `max_drop`"
            )
        random = np.random.default_rng(0)
        for _ in range(samples):
            found.append(held.figure(random.integers(len(held.pairs), size=len(held.pairs)).tolist()))
    return np.array(found)


class Recorded:
    """A model that notes what it gives for each batch, and gives it again in place of running."""

    def __init__(self, model: nn.Module | Predict, pairs: list[Pair], task: OwnTask) -> None:
        if len(pairs) < FEWEST:
            raise DataError(
                f"{task.name}: {len(pairs)} of half of the test data are too few for a promise, which takes {FEWEST} "
                "examples or batches: leave out `max_drop`"
            )
        self.model, self.pairs, self.task = model, pairs, task
        self.outputs: list[list[Any]] = [[] for _ in pairs]  # of each batch, in the order of the calls
        self._run, _ = placed(model)
        self._given: Iterator[Any] | None = None
        self._place = 0

    def figure(self, chosen: Sequence[int] | None = None) -> float:
        """The main figure: of all batches, noting what the model gives; or of some, by what it gave."""

        def batches() -> Iterator[Pair]:
            for number in range(len(self.pairs)) if chosen is None else chosen:
                self._place, self._given = number, None if chosen is None else iter(self.outputs[number])
                yield self.pairs[number]

        return next(iter(self.task.measure(self, batches()).values()))

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if self._given is None:
            found = self._run(*arguments, **keywords)
            self.outputs[self._place].append(found)
        else:
            found = next(self._given, None)
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


_SAMPLES = 400  # of a user's data, with replacement
_BEYOND = 20  # at least so many of them beyond the bound


@dataclass(frozen=True)
class Promise:
    """Data put aside, and how the network did on them as it came."""

    settings: PromiseSettings
    images: Any  # of labelled images an AnySet, of a user's task a Part
    before: Any  # which images are right, bool (images,); of a user's task the figures of samples

    @classmethod
    def of(cls, settings: PromiseSettings, images: Any, model: nn.Module | Predict, task: Task) -> "Promise":
        """Before anything is changed."""
        if isinstance(task, Data):
            return cls(settings, images, which_right(model, images, task))
        return cls(settings, images, _figures(settings, images, model, task))

    def kept(self, models: Sequence[nn.Module | Predict], task: Task) -> tuple[int | None, Certificate]:
        """Which is the cheapest of some candidates that keeps it, None where none does, and what is promised.

        They come from the safest to the cheapest, in an order that does not depend on these data.
        """
        asked, confidence = self.settings.max_drop, self.settings.confidence
        assert asked is not None
        if isinstance(task, Data):
            rows = [np.asarray(which_right(each, self.images, task)) for each in models]
            return promised(self.images.labels, self.before, rows, task.classes, drop=asked, confidence=confidence)
        part, figures = self.images, [_figures(self.settings, self.images, each, task) for each in models]
        return estimated(
            self.before, figures, task.figure, drop=asked, confidence=confidence,
            images=part.count(1), unit="examples" if part.of_examples else "batches",
        )  # fmt: skip


def _figures(settings: PromiseSettings, part: Any, model: nn.Module | Predict, task: Task) -> NDArray[np.float64]:
    assert isinstance(task, OwnTask)
    return resampled(model, part, task, max(_SAMPLES, math.ceil(_BEYOND / (1 - settings.confidence))))


def put_aside(task: Task, seed: int) -> tuple[Task, Any]:
    """A task with half of its test data, and the other half (of images of every class), to make a promise on.

    Raises DataError where there are too few to divide.
    """
    if task.test is task.validation:
        raise DataError(f"{task.name} has no test data to make a promise on: leave out `max_drop`")
    if isinstance(task, Data) and len(task.test) < 2 * len(task.test.labels.unique()):
        raise DataError(f"{task.name}: {len(task.test)} test images are too few for a promise: leave out `max_drop`")
    kept, aside = task.halves(task.test, seed)
    return task.with_test(kept), aside


class Judge:
    """Judges the networks of several runs of a job: on validation images while one chooses, then on those put aside."""

    def __init__(self, job: RunJob, like: Subject | None = None) -> None:
        self.subject = open_subject(job.model, job.data, job.loading, job.training.device, like)
        assert self.subject.data is not None
        self.data, aside = put_aside(self.subject.data, job.loading.seed)
        self.promise = Promise.of(job.promise, aside, self.subject.module, self.data)
        self.before = self._figure(self.subject.module)
        self._figures: dict[str, float] = {}

    def drop(self, folder: str) -> float:
        """What the network of a run loses on the validation data; of top-1 as a share of the images."""
        if folder not in self._figures:
            self._figures[folder] = self._figure(self.opened(folder))
        return self.data.figure.drop(self.before, self._figures[folder])

    def cheapest(self, costs: Mapping[str, float]) -> tuple[str | None, Certificate]:
        """The cheapest of some runs that keeps the promise, None where none does, and what is promised.

        Those that a cheaper one beats on validation images are left out, which gives the rest an order before the
        images that were put aside are looked at.
        """
        order: list[str] = []
        for folder in sorted(costs, key=lambda each: (costs[each], self.drop(each))):
            if not order or self.drop(folder) < self.drop(order[-1]):
                order.append(folder)
        order.reverse()
        at, certificate = self.promise.kept([self.opened(folder) for folder in order], self.data)
        return (None if at is None else order[at]), certificate

    def figure(self, folder: str | None = None) -> float:
        """The main figure of a run's network, by default of the one that came, on the test data that are left."""
        model = self.subject.module if folder is None else self.opened(folder)
        return evaluate(model, self.data.test, self.data).main

    def opened(self, folder: str) -> nn.Module | OnnxModel:
        """The network in a folder, of a run or of a package."""
        if (Path(folder) / MANIFEST).exists():
            return OnnxModel(Path(folder) / ONNX, own=True)
        return open_model(Path(folder) / MODEL).module.to(self.subject.device)

    def _figure(self, model: nn.Module | OnnxModel) -> float:
        return evaluate(model, self.data.validation, self.data).main


@distributed.by_first
def differing(model: nn.Module, deepest: nn.Module, image_set: AnySet, data: Data) -> int:
    """How many images of a set two networks give different classes; of several processes the first looks."""
    count = 0
    with evaluating(model), evaluating(deepest), torch.no_grad():
        for x, _ in data.counted("evaluating", image_set, device=device_of(model)):
            first, second = (first_output(each(x)).argmax(1) for each in (model, deepest))
            count += int((first != second).sum())
    return count
