"""How well a network, or anything else that maps inputs to outputs, does what it is for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import DataError
from compressor.graph.skeleton import set_mode
from compressor.graph.tensors import device_of
from compressor.report.progress import counted
from compressor.training.task import Task

Predict = Callable[[NDArray[np.float32]], Any]  # a float batch to scores, such as ONNX Runtime's


class Figures:
    """What was measured, by name."""

    figures: dict[str, float]

    @property
    def top1(self) -> float:
        """Fraction in 0..1 of the images whose largest score is their class's, where images are classified."""
        return self.figures["top1"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, where images are classified."""
        return self.figures["loss"]


@dataclass(frozen=True)
class Evaluation(Figures):
    """How well a model does on a part of the data."""

    figures: dict[str, float]  # the main one first
    count: int  # images, or batches of a user's task

    @property
    def main(self) -> float:
        """The main figure."""
        return next(iter(self.figures.values()))


def evaluate(model: nn.Module | Predict, part: Any, task: Task, batch_size: int | None = None) -> Evaluation:
    """Evaluate in float32, in eval mode, on the model's own device; the model's mode is put back afterwards.

    `model` maps what the task gives it to outputs, of torch or, for a callable that is no nn.Module, of NumPy.

    Raises ModelError when the outputs have another shape, DataError when the part is empty.
    """
    if not len(part):
        raise DataError(f"{task.name}: there are no {task.unit} to evaluate on")
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    predict = model if isinstance(model, nn.Module) else through_numpy(model)
    # On a CPU up to twice as fast; a GPU gains from it only in half precision, and this is none.
    layout = device.type == "cpu" and isinstance(model, nn.Module) and task.takes_channels_last(model)
    with evaluating(model), torch.no_grad():
        pairs = task.passing(part, batch_size, device, layout)
        told = counted(f"evaluating {task.unit}", pairs, len(part), task.count_in)
        return Evaluation(task.measure(predict, told), len(part))


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


def through_numpy(predict: Predict) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        outputs = predict(x.numpy())
        while isinstance(outputs, (tuple, list)) and outputs:
            outputs = outputs[0]
        return torch.from_numpy(np.asarray(outputs))

    return call
