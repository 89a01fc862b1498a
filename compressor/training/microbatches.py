"""A batch in as many pieces as memory asks for, with the gradients of the whole."""

import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import CompressorError
from compressor.files.limits import lacks_memory
from compressor.training import distributed
from compressor.training.task import examples_in, taken

# What one batch, a task's pair, does: forward, loss, backward. Gradients are None when it is called; it leaves in
# `.grad` those of the mean loss over the batch, and returns that loss, or the loss and the number of right answers.
Step = Callable[[nn.Module, Any, Any], Tensor | tuple[Tensor, Tensor | None]]

SMALLEST = 2  # images: batch-norm over one image has no variance where maps are 1x1


@dataclass
class MicroBatches:
    """Runs steps; when memory runs out, halves the piece that goes through the network at once and tries again.

    Gradients are the same as in one piece, within rounding, as long as the loss is a mean over images; batch-norm sees
    the statistics of a piece.
    """

    step: Step
    autocast: Callable[[], AbstractContextManager[object]]
    note: Callable[[str], None]
    size: int = 0  # images at once; 0: the whole batch

    def run(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        """Leave the batch's gradients in `.grad`; returns its mean loss and right answers (None if not counted).

        Raises CompressorError when not even two images fit, or where other processes wait for the batch as it is.
        """
        while True:
            try:
                return self._in_pieces(model, optimizer, x, y)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not lacks_memory(error):
                    raise
                if distributed.size() > 1:
                    raise CompressorError(
                        f"out of memory with {examples_in(x)} images in each process: give a smaller `batch_size`, or "
                        "more processes"
                    ) from error
            # Outside the handler, where the error no longer holds on to the tensors of the pass that failed.
            self._halve(examples_in(x))
            optimizer.zero_grad(set_to_none=True)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def _in_pieces(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any
    ) -> tuple[Tensor, Tensor | None]:
        optimizer.zero_grad(set_to_none=True)
        count = examples_in(x)
        if not self.size or self.size >= count:
            return self._once(model, x, y)
        pieces = math.ceil(count / self.size)
        sums: dict[nn.Parameter, Tensor] = {}
        losses: list[Tensor] = []
        counts: list[Tensor | None] = []
        for part in torch.arange(count).tensor_split(pieces):
            share, here = len(part) / count, slice(int(part[0]), int(part[-1]) + 1)
            loss, right = self._once(model, taken(x, here), taken(y, here))
            losses.append(loss * share)
            counts.append(right)
            _take_gradients(optimizer, share, sums)
        for parameter, gradient in sums.items():
            parameter.grad = gradient
        known = [count for count in counts if count is not None]
        return torch.stack(losses).sum(), torch.stack(known).sum() if len(known) == pieces else None

    def _once(self, model: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        with self.autocast():
            result = self.step(model, x, y)
        loss, right = result if isinstance(result, tuple) else (result, None)
        return loss.detach(), right

    def _halve(self, batch: int) -> None:
        size = min(self.size or batch, batch)
        if size <= SMALLEST:
            raise CompressorError(
                f"out of memory with {size} images at a time: choose a smaller `input`, or another `device`"
            )
        self.size = math.ceil(size / 2)
        self.note(
            f"out of memory: {self.size} images go through the network at a time now, gradients of {batch} are summed; "
            f"batch-norm sees {self.size}"
        )


def _take_gradients(optimizer: torch.optim.Optimizer, share: float, sums: dict[nn.Parameter, Tensor]) -> None:
    """Add every gradient, times its share, to the sums and clear it: a step may rely on finding none."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter in sums:
                sums[parameter].add_(parameter.grad, alpha=share)
            else:
                sums[parameter] = parameter.grad.mul_(share)
            parameter.grad = None
