"""The data of a user's task: a data set of examples, or whatever gives batches."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from compressor.errors import DataError, UsageError
from compressor.graph.neutral import seeded
from compressor.training.numerics import derive_seed, generator

BATCH = 64  # examples at once where nothing is learnt


class Giver(Protocol):
    """The task that a part asks for its data."""

    @property
    def name(self) -> str: ...

    def asked(self, method: str, *given: Any) -> Any: ...

    def failed(self, what: str, error: Exception) -> NoReturn: ...


class Part:
    """One split of a user's data."""

    def __init__(self, task: Giver, split: str, given: Any = None) -> None:
        self.task, self.split = task, split
        self._used = False  # once, of what can be iterated over once only
        self._given = self._asked() if given is None else given
        self._counted: int | None = None
        # What is read by index holds examples; a list holds batches, as everything that is only iterated over.
        by_index = hasattr(self._given, "__getitem__") and hasattr(self._given, "__len__")
        self.is_list = isinstance(self._given, list | tuple)
        self.of_examples = by_index and not self.is_list and not isinstance(self._given, IterableDataset)
        if not len(self):
            raise DataError(f'{task.name}: data("{split}") is empty')

    def __len__(self) -> int:
        return self.count(BATCH)

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

    def halves(self, seed: int) -> tuple["Part", "Part"]:
        """Two parts of it, drawn by the seed; where batches come, every second one."""
        if not self.of_examples:
            return self._like(EverySecond(self, 0)), self._like(EverySecond(self, 1))
        order = self._order(seed, "aside")
        first, second = (self._like(Subset(self._given, sorted(each.tolist()))) for each in order.tensor_split(2))
        return first, second

    def some(self, count: int, seed: int) -> "Part":
        """So many of its examples, drawn by the seed; where batches come, or there are no more, all of them."""
        if not self.of_examples or len(self._given) <= count:
            return self
        return self._like(Subset(self._given, sorted(self._order(seed, "some")[:count].tolist())))

    def _like(self, given: Any) -> "Part":
        return Part(self.task, self.split, given)

    def _order(self, seed: int, purpose: str) -> Tensor:
        return torch.randperm(len(self._given), generator=generator(torch.device("cpu"), seed, purpose))

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
