"""What a network is for: its data, its loss, its figures. The loop and every verb know a task, and none of them more.

Labelled images are one such task (`data.Data`), a class of the user's is another (`own_task.OwnTask`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph.trace import call_arguments
from compressor.report import units
from compressor.report.measurements import Figure
from compressor.report.progress import counted
from compressor.training.settings import TrainSettings

# What a network is called with, and what its outputs are compared with, both with the batch first: images and labels;
# of a user's task the inputs and the whole batch.
Pair = tuple[Any, Any]
Model = Callable[..., Any]


class Task(ABC):
    """Data in three parts, a loss and figures."""

    name: str
    train: Any  # each part is `Sized`
    validation: Any
    test: Any
    notes: list[str]  # lines to tell the user
    problems: list[tuple[str, str]]  # (path, reason) of what could not be read
    classes: tuple[str, ...]  # of the labels, where the task has any
    figures: tuple[str, ...] = ()  # names of what `measure` gives, the main one first, as far as they are known
    higher: bool = True  # the main figure is the better
    unit: str = "batches"  # what the length of a part counts

    @property
    def figure(self) -> Figure:
        """The main figure; before anything was measured a user's has no name yet."""
        return Figure(self.figures[0] if self.figures else "figure", self.higher)

    @abstractmethod
    def steps(self, settings: TrainSettings) -> int:
        """Batches in an epoch of training."""

    @abstractmethod
    def training(self, settings: TrainSettings, epoch: int, start: int, device: torch.device) -> Iterator[Pair]:
        """The batches of an epoch from the `start`-th on; of several processes each has its part of every batch.

        They are a function of seed, epoch and place, so that a run can go on in the middle of an epoch.
        """

    @abstractmethod
    def passing(
        self, part: Any, batch_size: int | None = None, device: torch.device | str = "cpu", channels_last: bool = False
    ) -> Iterator[Pair]:
        """A part of the data once, in its order and as it is measured on."""

    def counted(
        self,
        what: str,
        part: Any,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> Iterator[Pair]:
        """`passing`, which tells how far it is with what is done: "evaluating"."""
        pairs = self.passing(part, batch_size, device, channels_last)
        return counted(f"{what} {self.unit}", pairs, len(part), self.count_in)

    @abstractmethod
    def drawn(self, part: Any, count: int, seed: int, device: torch.device, batch_size: int = 128) -> Iterator[Pair]:
        """Some `count` examples of a part at random, not augmented."""

    def examples(self, part: Any, count: int = 8, device: torch.device | str = "cpu") -> Any:
        """Up to `count` examples of a part, as the network is called with them."""
        found: list[Any] = []
        for x, _ in self.passing(part, min(count, 64), device):
            if found and _form(x) != _form(found[0]):
                break
            found.append(taken(x, slice(count)))
            count -= examples_in(x)
            if count <= 0:
                break
        return _together(found)

    @abstractmethod
    def alike(self, part: Any, batches: int, batch_size: int | None, seed: int, device: torch.device) -> Iterator[Pair]:
        """The same in up to so many batches of equal size."""

    @abstractmethod
    def halves(self, part: Any, seed: int) -> tuple[Any, Any]:
        """Two parts of a part, each with about half of its examples, drawn by the seed."""

    @abstractmethod
    def some(self, part: Any, count: int, seed: int) -> Any:
        """A part with no more than so many of its examples, drawn by the seed, where they can be taken."""

    @abstractmethod
    def with_test(self, part: Any) -> Self:
        """The same task with other test data."""

    @abstractmethod
    def correct(self, outputs: Any, y: Any) -> Tensor:
        """Which examples of a batch a model's outputs have right, bool (batch,), where that can be told."""

    @abstractmethod
    def labels(self, y: Any) -> Tensor:
        """The class of each example of a batch, int64 (batch,), where there are classes."""

    @abstractmethod
    def loss(self, model: Model, x: Any, y: Any, smoothing: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """The mean loss of a batch, a scalar; and how many answers are right, where they are counted."""

    @abstractmethod
    def measure(self, model: Model, pairs: Iterable[Pair]) -> dict[str, float]:
        """Figures over batches, the main one first; the model is in eval mode."""

    def imitation(self, given: Any, wanted: Any, temperature: float) -> Tensor:
        """How far outputs are from a teacher's: squared error over its variance, a mean over all tensors.

        Over itself where it is larger: a teacher that hardly varies gives no steps that no training survives.
        """
        return torch.stack([_distance(*each) for each in zip(_numbers(given), _numbers(wanted), strict=True)]).mean()

    def takes_channels_last(self, model: nn.Module, *, training: bool = False) -> bool:
        """Whether the model computes on inputs whose channels lie last in memory."""
        return False

    def count_in(self, pair: Pair) -> int:
        """How much of the length of a part a batch is."""
        return 1

    def amount(self, part: Any) -> str:
        """How much there is in a part, in words."""
        return f"{len(part):,} {self.unit}"


def by_class(outputs: Any, labels: Tensor) -> Tensor:
    """Which largest scores are those of the labels, bool (batch,)."""
    return first_output(outputs).argmax(1) == labels


def first_output(outputs: Any) -> Tensor:
    """The scores among a model's outputs: the first of a tuple, list or dict.

    Raises ModelError when that is no tensor.
    """
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    while isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor):
        raise ModelError(f"the model gives {type(outputs).__name__} where scores (batch, classes) are expected")
    return outputs


def called(model: Model, x: Any) -> Any:
    """What a model gives for inputs: one tensor, a tuple of several, a dict of keywords."""
    arguments, keywords = call_arguments(x, model)
    return model(*arguments, **keywords)


def examples_in(batch: Any) -> int:
    """How many examples a batch holds, by the first tensor or list of examples in it; 1 where there is none."""
    return next(_lengths(batch), 1)


def _lengths(batch: Any, depth: int = 0) -> Iterator[int]:
    if isinstance(batch, Mapping):
        for part in batch.values():
            yield from _lengths(part, depth + 1)
    elif isinstance(batch, list | tuple):
        if depth:
            yield len(batch)
        for part in batch:
            yield from _lengths(part, depth + 1)
    elif isinstance(batch, Tensor) and batch.ndim:
        yield len(batch)


def taken(batch: Any, part: slice) -> Any:
    """Some examples of a batch: of every tensor in it that is as long as it, and of every list inside.

    A batch is a tensor, or a tuple, list or dict of parts; a list within it has an entry for each example, such as
    images of their own sizes.
    """
    return _taken(batch, part, examples_in(batch), 0)


def _taken(batch: Any, part: slice, count: int, depth: int) -> Any:
    if isinstance(batch, Mapping):
        return {key: _taken(each, part, count, depth + 1) for key, each in batch.items()}
    if isinstance(batch, list | tuple):
        if depth and len(batch) == count:
            return batch[part]
        held = [_taken(each, part, count, depth + 1) for each in batch]
        return tuple(held) if isinstance(batch, tuple) else held
    return batch[part] if isinstance(batch, Tensor) and batch.ndim and len(batch) == count else batch


def _form(batch: Any) -> tuple[Any, ...]:
    """How a batch holds its tensors, and their sizes but the first: those of equal form can stand in one. None is equal
    to one with a list in it, such as images of their own sizes."""
    leaves, held = tree_flatten(batch, is_leaf=lambda part: isinstance(part, list))
    kinds = (leaf.shape[1:] if isinstance(leaf, Tensor) else isinstance(leaf, list) and object() for leaf in leaves)
    return held, *kinds


def _together(batches: Sequence[Any]) -> Any:
    """Batches of one form as one; what is not a tensor with an entry for each example is that of the first."""
    count = examples_in(batches[0])

    def joined(*parts: Any) -> Any:
        each = isinstance(parts[0], Tensor) and parts[0].ndim and len(parts[0]) == count
        return torch.cat(parts) if each else parts[0]

    return tree_map(joined, *batches)


def moved(batch: Any, device: torch.device | str) -> Any:
    """A batch with its tensors on a device."""
    return tree_map(lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf, batch)


def shapes(batch: Any) -> str:
    """The tensors of a batch in words, such as "float32 4x3x32x32, int64 4"."""
    found = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    told = [f"{str(leaf.dtype)[6:]} {units.shape(leaf.shape) or 'scalar'}" for leaf in found[:6]]
    return ", ".join(told) + (", ..." if len(found) > 6 else "") or f"a {type(batch).__name__} without tensors"


def _numbers(outputs: Any) -> list[Tensor]:
    return [leaf.float() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _distance(given: Tensor, wanted: Tensor) -> Tensor:
    error = functional.mse_loss(given, wanted)
    return error / torch.maximum(wanted.var(correction=0), error.detach()).clamp_min(1e-12)
