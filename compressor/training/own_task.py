"""A user's own task, an object with `data`, `loss`, `measure` and `inputs`: any data, any loss, any figures."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from compressor.errors import CompressorError, UsageError, cause
from compressor.files.limits import lacks_memory
from compressor.training import distributed
from compressor.training.numerics import derive_seed
from compressor.training.own_part import BATCH, Part
from compressor.training.settings import TrainSettings
from compressor.training.task import Model, Pair, Task, by_class, examples_in, moved, shapes, taken

METHODS = {
    "data": "data(self, split)",
    "loss": "loss(self, model, batch)",
    "measure": "measure(self, model, batches)",
    "inputs": "inputs(self, batch)",
}
OPTIONAL = {"correct": "correct(self, outputs, batch)", "labels": "labels(self, batch)"}


def _told(error: Exception) -> str:
    """What an error says, and of which kind it is."""
    return f"{type(error).__name__}: {cause(error)}"


class OwnTask(Task):
    """The task that an object of the user's is.

    `data(split)` of "train", "validation" or "test" gives a data set of examples (`__getitem__` and `__len__`: those of
    torch, torchvision, Hugging Face), which are shuffled and put into batches here; or anything else that can be
    iterated over, whose items are batches: a DataLoader, WebDataset, a generator. `loss(model, batch)` is the mean over
    the batch, a scalar tensor. `measure(model, batches)` gives figures by name, the main one first; it is the higher
    the better unless the object has `lower_is_better = True`. `inputs(batch)` is what the model is called with: a
    tensor, a tuple of several, a dict of keywords. Batches come on the model's device.

    Two further methods may be there, for verbs that look at single examples: `correct(outputs, batch)` says which are
    right, a bool tensor (batch,), and `labels(batch)` gives their classes, an int64 tensor (batch,).

    Raises UsageError where a method is missing, DataError where a split holds nothing.
    """

    def __init__(self, user: object, name: str, told: Callable[[Exception], str] = _told) -> None:
        self.user, self.name, self.told = user, name, told
        self.notes: list[str] = []
        self.problems: list[tuple[str, str]] = []
        self.classes: tuple[str, ...] = ()
        self.higher = not getattr(user, "lower_is_better", False)
        if isinstance(user, type):
            raise UsageError(f"the task {user.__name__} is a class: give an object, such as {user.__name__}()")
        for method, form in METHODS.items():
            if not callable(getattr(user, method, None)):
                raise UsageError(
                    f"the task {name} has no method `{form}`: it takes {', '.join(METHODS)}, as in the template that "
                    "`compressor new-task FILE.py` writes"
                )
        self.train, self.validation = Part(self, "train"), Part(self, "validation")
        tested = self.asked("data", "test")
        if tested is None:
            self.notes.append(f"{name} has no test data: its validation data give the final figures, too")
        self.test = self.validation if tested is None else Part(self, "test", tested)

    def asked(self, method: str, *given: Any, batch: Any = None) -> Any:
        """What a method of the user's gives; whatever it raises becomes one line."""
        try:
            return getattr(self.user, method)(*given)
        except Exception as error:
            self.failed(method, error, batch)

    def failed(self, method: str, error: Exception, batch: Any = None) -> NoReturn:
        """Raise what a method of the user's raised, as one line."""
        if isinstance(error, CompressorError) or lacks_memory(error):
            raise error
        where = "" if batch is None else f" on a batch of {shapes(batch)}"
        raise UsageError(f"{self.name}: {method} failed{where}: {self.told(error)}") from error

    def amount(self, part: Part) -> str:
        """Examples, where they are counted."""
        return part.amount()

    def steps(self, settings: TrainSettings) -> int:
        count: int = self.train.count(settings.batch_size, whole=True)
        return count

    def training(self, settings: TrainSettings, epoch: int, start: int, device: torch.device) -> Iterator[Pair]:
        """As in `Task`; in place of the seed of a data set's own batches, all generators start anew with each batch."""
        seed = derive_seed(settings.seed, "order", epoch)
        batches = self.train.batches(settings.batch_size, seed, start, self.steps(settings), shuffled=True)
        for batch in batches:
            yield self._pair(taken(batch, distributed.own_part(examples_in(batch))), device)

    def passing(
        self,
        part: Part,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> Iterator[Pair]:
        for batch in part.batches(batch_size or BATCH):
            yield self._pair(batch, device)

    def drawn(self, part: Part, count: int, seed: int, device: torch.device, batch_size: int = 128) -> Iterator[Pair]:
        """As in `Task`; where the user's own batches come, the first of them."""
        for batch in part.batches(min(batch_size, count), derive_seed(seed, "score"), shuffled=True):
            batch = taken(batch, slice(count))
            yield self._pair(batch, device)
            count -= examples_in(batch)
            if count <= 0:
                return

    def alike(
        self, part: Part, batches: int, batch_size: int | None, seed: int, device: torch.device
    ) -> Iterator[Pair]:
        drawn = part.batches(batch_size or BATCH, derive_seed(seed, "recalibrate"), shuffled=True)
        size = 0
        for batch in islice(drawn, batches):
            size = size or examples_in(batch)
            if examples_in(batch) == size:
                yield self._pair(batch, device)

    def loss(self, model: Model, x: Any, y: Any, smoothing: float = 0.0) -> tuple[Tensor, None]:
        """As in `Task`. Raises UsageError where the user's gives no scalar, or one that nothing can be learnt from."""
        if smoothing:
            raise UsageError(f"label smoothing is for labelled images: {self.name} has a loss of its own")
        found = self.asked("loss", model, y, batch=y)
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
            kind = f"a tensor, {shapes(found)}" if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"{self.name}: loss gave {kind}: return one number as a tensor, the mean over the batch")
        if torch.is_grad_enabled() and not found.requires_grad:
            raise UsageError(f"{self.name}: loss depends on no parameter of the model: compute it from model's outputs")
        return found.reshape(()), None

    def measure(self, model: Model, pairs: Iterable[Pair]) -> dict[str, float]:
        """As in `Task`. Raises UsageError where the user's gives no figures, or what is no number."""
        found = self.asked("measure", model, (batch for _, batch in pairs))
        if not isinstance(found, Mapping) or not found:
            raise UsageError(
                f'{self.name}: measure gave {str(found)[:80]!r}: return a dict such as {{"mAP50": 0.81}}, the main '
                "figure first"
            )
        figures = {str(name): self._number(str(name), value) for name, value in found.items()}
        self.figures = self.figures or tuple(figures)
        name = self.figures[0]
        if name not in figures:
            raise UsageError(f"{self.name}: measure gave {', '.join(figures)}, and {name} before: always return it")
        return {name: figures.pop(name), **figures}

    def halves(self, part: Part, seed: int) -> tuple[Part, Part]:
        """As in `Task`; of the user's own batches every second one."""
        return part.halves(seed)

    def some(self, part: Part, count: int, seed: int) -> Part:
        """As in `Task`; of the user's own batches all."""
        return part.some(count, seed)

    def with_test(self, part: Part) -> "OwnTask":
        kept = copy.copy(self)
        kept.test = part
        return kept

    def correct(self, outputs: Any, y: Any) -> Tensor:
        """As in `Task`: by the user's `correct(outputs, batch)`, or by `labels(batch)`."""
        if not self.has("correct"):
            return by_class(outputs, self.labels(y))
        found: Tensor = torch.as_tensor(self.asked("correct", outputs, y, batch=y))
        if found.ndim != 1 or found.dtype != torch.bool or len(found) != examples_in(y):
            raise UsageError(
                f"{self.name}: correct gave {shapes(found)}: return one bool for each of the {examples_in(y)} examples"
            )
        return found

    def labels(self, y: Any) -> Tensor:
        """As in `Task`: by the user's `labels(batch)`."""
        found: Tensor = self.asked("labels", y, batch=y)
        whole = isinstance(found, Tensor) and found.dtype == torch.int64
        if not whole or found.ndim != 1 or len(found) != examples_in(y):
            raise UsageError(
                f"{self.name}: labels gave {shapes(found)}: return the class of each of the {examples_in(y)} examples, "
                "an int64 tensor"
            )
        return found

    def has(self, method: str) -> bool:
        """Whether the user's object has one of the methods that a task may have."""
        return callable(getattr(self.user, method, None))

    def _number(self, name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{self.name}: measure gave {name} = {str(value)[:80]}: return numbers") from error
        if not math.isfinite(number):
            raise UsageError(f"{self.name}: measure gave {name} = {number}: return numbers that are finite")
        return number

    def _pair(self, batch: Any, device: torch.device | str) -> Pair:
        batch = moved(batch, device)
        return self.asked("inputs", batch, batch=batch), batch
