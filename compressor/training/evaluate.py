"""Top-1 accuracy and loss of a network, or of anything that maps batches to scores, over a data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from compressor.errors import DataError, ModelError
from compressor.graph.skeleton import set_mode
from compressor.graph.tensors import device_of
from compressor.report.progress import counted
from compressor.training.batching import batches, examples
from compressor.training.data import AnySet, Data

Predict = Callable[[NDArray[np.float32]], Any]  # a float batch to scores, such as ONNX Runtime's


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on a set."""

    top1: float  # fraction in 0..1 of the images whose largest score is their class's
    loss: float  # mean cross-entropy in nats
    count: int  # images


def evaluate(model: nn.Module | Predict, image_set: AnySet, data: Data, batch_size: int | None = None) -> Evaluation:
    """Evaluate in float32, in eval mode, on the model's own device; the model's mode is put back afterwards.

    `model` maps `(batch, *data.input_shape)` to scores `(batch, classes)`, of torch or, for a callable that is no
    nn.Module, of NumPy. Of several outputs the first counts.

    Raises ModelError when the scores have another shape, DataError when the set is empty.
    """
    if not len(image_set):
        raise DataError(f"{data.name}: there are no images to evaluate on")
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    predict = model if isinstance(model, nn.Module) else _through_numpy(model)
    # On a CPU up to twice as fast; a GPU gains from it only in half precision, and this is none.
    layout = device.type == "cpu" and isinstance(model, nn.Module) and takes_channels_last(model, data)
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    with evaluating(model), torch.no_grad():
        looked_at = batches(image_set, data, batch_size, device, layout)
        for x, y in counted("evaluating images", looked_at, len(image_set), lambda batch: len(batch[1])):
            scores = first_output(predict(x))
            if scores.ndim != 2 or len(scores) != len(y) or scores.shape[1] < len(data.classes):
                shape = tuple(scores.shape)
                raise ModelError(f"the model gives {shape} for {len(y)} images of {len(data.classes)} classes")
            right += (scores.argmax(1) == y).sum()
            loss += functional.cross_entropy(scores.float(), y, reduction="sum")
            count += len(y)
    return Evaluation(int(right) / count, float(loss) / count, count)


def takes_channels_last(model: nn.Module, data: Data, *, training: bool = False) -> bool:
    """Whether the model computes on images `(batch, *data.input_shape)` whose channels lie last in memory, in eval mode
    and, if asked for, in training mode too; its statistics and the random generators stay as they are.

    One that reads its maps with `view` does not: their rows no longer follow each other. Two black images are tried; a
    model that cannot take them in any layout says so where it is used.
    """
    images = torch.zeros(2, *data.input_shape, device=device_of(model)).contiguous(memory_format=torch.channels_last)
    with modes_kept(model), torch.no_grad(), torch.random.fork_rng(devices=_gpu(images)):
        try:
            for mode in (False, True)[: 1 + training]:
                kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
                functional_call(model.train(mode), kept, (images,))
        except (RuntimeError, ValueError):  # batch norm over a single value
            return False
    return True


def _gpu(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []


def count_outputs(model: nn.Module, data: Data) -> int:
    """How many scores the model gives for an image of the data set; the example is one of the validation set's.

    Raises DataError when the model cannot take images of this shape, ModelError when it gives no scores for them.
    """
    with evaluating(model), torch.no_grad():
        x = examples(data.validation, data, 2, device_of(model))
        try:
            scores = first_output(model(x))
        except (RuntimeError, ValueError, AssertionError) as error:
            shape = "x".join(str(size) for size in data.input_shape)
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"the model cannot take {shape} images ({reason}): give its own shape with --input"
            ) from error
    if scores.ndim != 2 or len(scores) != len(x):
        raise ModelError(f"the model gives {tuple(scores.shape)} for {len(x)} images, not scores (batch, classes)")
    return int(scores.shape[1])


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


def _through_numpy(predict: Predict) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        outputs = predict(x.numpy())
        while isinstance(outputs, (tuple, list)) and outputs:
            outputs = outputs[0]
        return torch.from_numpy(np.asarray(outputs))

    return call
