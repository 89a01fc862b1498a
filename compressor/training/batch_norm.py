"""Batch norm over the whole batch of several processes, and its statistics measured anew after filters have changed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.graph.tensors import device_of
from compressor.report.progress import counted
from compressor.training import distributed
from compressor.training.evaluate import evaluating
from compressor.training.task import Task, called


@contextmanager
def synchronised(model: nn.Module, wanted: bool) -> Iterator[None]:
    """While this lasts, batch norm in training mode takes its statistics over all processes; without any, nothing.

    Layers keep their type and their places. A layer that has been replaced meanwhile, as surgery may do, is on its own.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)] if wanted and distributed.size() > 1 else []
    for layer in layers:
        layer.forward = partial(_normalised, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _normalised(layer: _BatchNorm, x: Tensor) -> Tensor:
    """(batch, channels, ...), with mean and variance over all processes' images and places."""
    if not layer.training:
        evaluated: Tensor = type(layer).forward(layer, x)
        return evaluated
    others, shape = [d for d in range(x.ndim) if d != 1], (1, -1, *[1] * (x.ndim - 2))
    count = distributed.summed(torch.tensor([x.numel() / x.shape[1]], dtype=torch.float64, device=x.device)).float()
    values = x.float()
    mean = _sum(values.sum(others)) / count
    centred = values - mean.view(shape)
    variance = _sum(centred.square().sum(others)) / count
    scale = (variance + layer.eps).rsqrt()
    if layer.track_running_stats:
        _remember_(layer, mean.detach(), (variance * count / (count - 1)).detach())
    if layer.weight is not None:
        scale = scale * layer.weight
    result = centred * scale.view(shape)
    if layer.bias is not None:
        result = result + layer.bias.view(shape)
    return result.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes; since each process's loss depends on it, so is the gradient."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return distributed.summed(values.clone())

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return distributed.summed(gradient.clone())


def _sum(values: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return result


def _remember_(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
    layer.running_var.lerp_(variance.to(layer.running_var), momentum)


def recalibrate_(
    model: nn.Module, part: Any, task: Task, *, batches: int = 16, batch_size: int | None = None, seed: int = 0
) -> int:
    """Re-estimate running means and variances in place, over `batches` random batches; returns the number of layers.

    Only batch-norm layers leave eval mode meanwhile (dropout stays off), nothing but their statistics changes, and
    every batch has equal weight, however many there are: the cumulative average instead of the exponential one. The
    variance is the mean of the batches' own; that of their means, smaller by about the batch size, is left out.

    Reference: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (precise statistics).
    """
    device = device_of(model)
    drawn = task.alike(part, batches, batch_size, seed, device)
    read = counted("recalibrating on batches", drawn, batches)
    return remeasure_(model, (x for x, _ in read))


def remeasure_(model: nn.Module, inputs: Iterable[Any]) -> int:
    """The same over batches of inputs as the model takes them; none is read where the model has no such layer."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    with evaluating(model), torch.no_grad():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's sign for the cumulative average
            layer.train()
        try:
            for given in inputs:
                called(model, given)
        finally:
            for layer, momentum in zip(layers, momenta):
                layer.momentum = momentum
    return len(layers)
