"""How well a network, or anything else that maps inputs to outputs, does what it is for."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from compressor.errors import DataError
from compressor.graph.skeleton import set_mode
from compressor.graph.tensors import device_of
from compressor.training import distributed
from compressor.training.task import Task, called

Predict = Callable[..., Any]  # batches of NumPy to what a model returns, such as ONNX Runtime's


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on a part of the data."""

    figures: dict[str, float]  # the main one first
    count: int  # images, or batches of a user's task

    @property
    def main(self) -> float:
        """The main figure."""
        return next(iter(self.figures.values()))

    @property
    def top1(self) -> float:
        """Fraction in 0..1 of the images whose largest score is their class's, where images are classified."""
        return self.figures["top1"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, where images are classified."""
        return self.figures["loss"]


def evaluate(model: nn.Module | Predict, part: Any, task: Task, batch_size: int | None = None) -> Evaluation:
    """Evaluate in float32, in eval mode, on the model's own device; the model's mode is put back afterwards.

    `model` maps what the task gives it to outputs, of torch or, for a callable that is no nn.Module, of NumPy.

    Raises ModelError when the outputs have another shape, DataError when the part is empty.
    """
    if not len(part):
        raise DataError(f"{task.name}: there are no {task.unit} to evaluate on")
    predict, device = placed(model)
    # On a CPU up to twice as fast; a GPU gains from it only in half precision, and this is none.
    layout = device.type == "cpu" and isinstance(model, nn.Module) and task.takes_channels_last(model)
    with evaluating(model), torch.no_grad():
        pairs = task.counted("evaluating", part, batch_size, device, layout)
        return Evaluation(task.measure(predict, pairs), len(part))


@distributed.by_first
def which_right(model: nn.Module | Predict, part: Any, task: Task) -> Tensor:
    """Which examples of a part a model has right, bool (examples,), on the CPU and in the part's order; of several
    processes the first looks.
    """
    predict, device = placed(model)
    with evaluating(model), torch.no_grad():
        pairs = task.counted("evaluating", part, device=device)
        found = [task.correct(called(predict, x), y).cpu() for x, y in pairs]
    return torch.cat(found).bool()


@contextmanager
def modes_kept(model: object) -> Iterator[None]:
    """Put every submodule's training or eval mode back in the end; nothing for what is no nn.Module."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes):
            module.training = mode


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Eval mode inside, and every submodule's own mode again afterwards."""
    with modes_kept(model):
        if isinstance(model, nn.Module):
            set_mode(model, training=False)
        yield


def placed(model: nn.Module | Predict) -> tuple[Callable[..., Any], torch.device]:
    """What is called with tensors in a model's place, and where these have to be: a callable of NumPy is on the CPU."""
    return (model, device_of(model)) if isinstance(model, nn.Module) else (through_numpy(model), torch.device("cpu"))


def through_numpy(predict: Predict) -> Callable[..., Any]:
    """What takes and gives tensors where something of NumPy's answers."""

    def call(*given: Any, **named: Any) -> Any:
        given, named = tree_map_only(Tensor, Tensor.numpy, (given, named))
        return _tensors(predict(*given, **named))

    return call


def _tensors(answer: Any) -> Any:
    if isinstance(answer, Mapping):
        return type(answer)({name: _tensors(each) for name, each in answer.items()})  # type: ignore[call-arg]
    if isinstance(answer, list | tuple):
        return [_tensors(each) for each in answer]
    return None if answer is None else torch.from_numpy(np.asarray(answer))


@dataclass
class Reading:
    """Sums read from the device."""

    loss: float = 0.0  # times images
    right: float = 0.0
    images: int = 0

    def mean(self) -> tuple[float, float]:
        """Loss and top-1 per image; not a number before the first."""
        return self.loss / max(self.images, 1), self.right / max(self.images, 1)


@dataclass
class Meter:
    """Sums of an epoch that stay on the device until they are read: reading waits for the device, adding does not."""

    device: torch.device
    sums: Tensor = field(init=False)  # float64: loss times images, right answers
    bad_step: Tensor = field(init=False)  # int64: the first step with a loss that is not finite, -1 while there is none
    images: int = 0
    counts_right: bool = True
    _last: Reading = field(default_factory=Reading)
    _time: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    def add(self, loss: Tensor, right: Tensor | None, images: int, step: int) -> None:
        """Add a batch's mean loss and its right answers."""
        self.sums[0] += loss.double() * images
        if right is None:
            self.counts_right = False
        else:
            self.sums[1] += right
        self.images += images
        first_bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(first_bad, step, self.bad_step)

    def due(self, seconds: float) -> bool:
        """Whether the last reading is so long ago."""
        return time.monotonic() - self._time >= seconds

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite; waits for the device."""
        step = int(self.bad_step)
        return None if step < 0 else step

    def since_last(self) -> tuple[float, float | None, float]:
        """Loss, top-1 and images per second since this was last asked; waits for the device."""
        loss, right = self.sums.tolist()
        now = time.monotonic()
        part = Reading(loss - self._last.loss, right - self._last.right, self.images - self._last.images)
        speed = part.images / max(now - self._time, 1e-9)
        self._last, self._time = Reading(loss, right, self.images), now
        mean, top1 = part.mean()
        return mean, top1 if self.counts_right else None, speed

    def total(self) -> tuple[float, float | None, float]:
        """Loss and top-1 over the epoch, and the seconds since it began or was resumed."""
        loss, right = self.sums.tolist()
        mean, top1 = Reading(loss, right, self.images).mean()
        return mean, top1 if self.counts_right else None, time.monotonic() - self.began

    def state(self) -> dict[str, Any]:
        """Plain data that `restore` takes."""
        return {"sums": self.sums.cpu(), "images": self.images, "counts_right": self.counts_right}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.sums = state["sums"].to(self.device)
        self.images, self.counts_right = state["images"], state["counts_right"]
        loss, right = self.sums.tolist()
        self._last = Reading(loss, right, self.images)
