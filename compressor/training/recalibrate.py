"""Batch-norm statistics measured anew, which a network needs after its filters have changed."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.graph.tensors import device_of
from compressor.report.progress import counted
from compressor.training.evaluate import evaluating
from compressor.training.task import Task, called


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
