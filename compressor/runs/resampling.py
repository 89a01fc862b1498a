"""A user's own figure on samples of its data, drawn with replacement: how sure a difference of two networks is.

Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", chapters 6 and 13.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compressor.errors import DataError, UsageError
from compressor.graph.tensors import device_of
from compressor.training import distributed
from compressor.training.evaluate import Predict, evaluating, through_numpy
from compressor.training.own_part import Part
from compressor.training.own_task import OwnTask
from compressor.training.task import Pair

FEWEST = 20  # examples or batches to draw from


def resampled(model: nn.Module | Predict, part: Part, task: OwnTask, samples: int) -> NDArray[np.float64]:
    """The main figure on a part, and then on so many samples of its examples; of a user's own batches, of its batches.

    The same are drawn for every model, so that differences are paired. The model runs once: what it gave is stored and
    given again.

    Raises:
        DataError: there are too few to draw from.
        UsageError: `measure` cannot be told again what the model gave.
    """
    return distributed.from_first(lambda: _resampled(model, part, task, samples))


def _resampled(model: nn.Module | Predict, part: Part, task: OwnTask, samples: int) -> NDArray[np.float64]:
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
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
        self._run = model if isinstance(model, nn.Module) else through_numpy(model)
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
