"""A user's own task, an object with `data`, `loss`, `measure` and `inputs`: any data, any loss, any figures."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from compressor.errors import CompressorError, DataError, UsageError, cause
from compressor.files.limits import lacks_memory
from compressor.graph.generators import seeded
from compressor.training import distributed
from compressor.training.randomness import derive_seed, generator
from compressor.training.settings import TrainSettings
from compressor.training.task import Model, Pair, Task, examples_in, moved, shapes, taken

METHODS = {
    "data": "data(self, split)",
    "loss": "loss(self, model, batch)",
    "measure": "measure(self, model, batches)",
    "inputs": "inputs(self, batch)",
}
SPLITS = ("train", "validation", "test")
_BATCH = 64  # examples at once where nothing is learnt


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

    def amount(self, part: "Part") -> str:
        """Examples, where they are counted."""
        return part.amount()

    def steps(self, settings: TrainSettings) -> int:
        """As in `Task`."""
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
        part: "Part",
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> Iterator[Pair]:
        """As in `Task`."""
        for batch in part.batches(batch_size or _BATCH):
            yield self._pair(batch, device)

    def drawn(self, part: "Part", count: int, seed: int, device: torch.device, batch_size: int = 128) -> Iterator[Pair]:
        """As in `Task`; where the user's own batches come, the first of them."""
        for batch in part.batches(min(batch_size, count), derive_seed(seed, "score"), shuffled=True):
            batch = taken(batch, slice(count))
            yield self._pair(batch, device)
            count -= examples_in(batch)
            if count <= 0:
                return

    def alike(
        self, part: "Part", batches: int, batch_size: int | None, seed: int, device: torch.device
    ) -> Iterator[Pair]:
        """As in `Task`."""
        drawn = part.batches(batch_size or _BATCH, derive_seed(seed, "recalibrate"), shuffled=True)
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

    def put_aside(self, seed: int) -> tuple["OwnTask", "Part"]:
        """The task with half of its test data, and the other half; of the user's own batches every second one.

        Raises DataError where it has no test data.
        """
        if self.test is self.validation:
            raise DataError(f"{self.name} has no test data to make a promise on: leave out `max_drop`")
        given, kept = self.test, copy.copy(self)
        if given.of_examples:
            count = len(given._given)
            order = torch.randperm(count, generator=generator(torch.device("cpu"), seed, "aside"))
            halves: Any = [Subset(given._given, sorted(each.tolist())) for each in order.tensor_split(2)]
        else:
            halves = [EverySecond(given, first) for first in (0, 1)]
        kept.test, aside = (Part(self, "test", half) for half in halves)
        return kept, aside

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


class Part:
    """One split of a user's data."""

    def __init__(self, task: OwnTask, split: str, given: Any = None) -> None:
        self.task, self.split = task, split
        self._used = False  # once, of what can be iterated over once only
        self._given = self._asked() if given is None else given
        self._counted: int | None = None
        # What is read by index holds examples; a list holds batches, as everything that is only iterated over.
        by_index = hasattr(self._given, "__getitem__") and hasattr(self._given, "__len__")
        self.of_examples = by_index and not isinstance(self._given, list | tuple | Mapping | IterableDataset)
        if not len(self):
            raise DataError(f'{task.name}: data("{split}") is empty')

    def __len__(self) -> int:
        return self.count(_BATCH)

    def amount(self) -> str:
        """How much there is in it."""
        return f"{len(self._given):,} examples" if self.of_examples else f"{len(self):,} batches"

    def count(self, batch_size: int, *, whole: bool = False) -> int:
        """Batches in a pass; of examples with `whole` those that are full, at least one."""
        if self.of_examples:
            examples = len(self._given)
            return max(min(1, examples), examples // batch_size) if whole else math.ceil(examples / batch_size)
        if self._counted is None:
            try:
                self._counted = len(self._given)
            except TypeError:  # it does not say
                self._counted = sum(1 for _ in self.batches(batch_size))
        return self._counted

    def batches(
        self, batch_size: int, seed: int = 0, start: int = 0, most: int | None = None, *, shuffled: bool = False
    ) -> Iterator[Any]:
        """The batches of one pass from the `start`-th on, and of the first `most`.

        Every batch is made with generators that start at the seed and its number: a pass that goes on in its middle
        gives what it would have given.
        """
        given, first = self._fresh(), 0
        if self.of_examples:
            count = len(given)
            place = torch.device("cpu")
            order = torch.randperm(count, generator=generator(place, seed)) if shuffled else torch.arange(count)
            first = start
            chosen = order[start * batch_size :].tolist()
            given = DataLoader(given, batch_size, sampler=chosen, collate_fn=collate, generator=torch.Generator())
        with seeded(derive_seed(seed, "begin")):
            iterator = iter(given)
        for number in range(first, most or 1 << 62):
            with seeded(derive_seed(seed, number)):
                try:
                    batch = next(iterator)
                except StopIteration:
                    if number == 0 and self._counted:
                        raise DataError(
                            f'{self.task.name}: data("{self.split}") gave no batch where {self._counted} are expected: '
                            "return what can be iterated over from its start again, or a new iterator at each call"
                        ) from None
                    return
                except Exception as error:
                    if "DataLoader worker" in str(error):
                        raise DataError(f"{self.task.name}: {' '.join(str(error).split())}") from error
                    self.task.failed(f'data("{self.split}")', error)
            if number >= start:
                yield batch

    def _asked(self) -> Any:
        given = self.task.asked("data", self.split)
        read = hasattr(given, "__iter__") or hasattr(given, "__getitem__")
        if not read or isinstance(given, str | Mapping):
            raise UsageError(
                f'{self.task.name}: data("{self.split}") gave {type(given).__name__}: return a data set, a DataLoader, '
                "or anything that gives batches"
            )
        return given

    def _fresh(self) -> Any:
        """What was given; where it can be iterated over once only, it is asked for anew after that."""
        given = self._given
        if hasattr(given, "__next__"):
            self._given = self._asked() if self._used else given
            self._used = True
            given = self._given
        return given


class EverySecond:
    """Half of the batches of a part, from the first or the second on."""

    def __init__(self, part: Part, first: int) -> None:
        self.part, self.first = part, first

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.part._fresh()), self.first, None, 2)


def collate(rows: list[Any]) -> Any:
    """Examples as a batch: tensors stacked, and a list of what cannot be stacked: images of their own sizes, texts."""
    first = rows[0]
    if isinstance(first, Mapping):
        return {key: collate([row[key] for row in rows]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(collate(list(parts)) for parts in zip(*rows, strict=True))
    try:
        return default_collate(rows)
    except (TypeError, RuntimeError):
        return rows
