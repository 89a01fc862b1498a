"""Several processes that train as one, as `torchrun` starts them; with a single process nothing here does anything.

All processes run the same program in step and hold the same weights, bit for bit: each makes the gradients of its part
of every batch, and they are added up over the processes before the optimizer's step (`add_up_`). Nothing is wrapped
around the model, so that surgery between two steps, and steps that call parts of a network, need nothing from here.
What is decided, measured or written is so by the first process alone, which tells the others (`from_first`).

Tensors on GPUs travel by NCCL, those on the CPU by Gloo; what the host has to know about a step goes by Gloo, so that
no process waits for its GPU.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import Elsewhere, UsageError

_PATIENCE = timedelta(hours=2)  # while the first process measures or decides, the others wait
_ON_THE_HOST = torch.device("cpu")

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun started, while this lasts; nothing where it started none.

    Raises UsageError where a machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or size() > 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        here, number = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        if number >= here:
            raise UsageError(f"{here} GPUs cannot be used by more processes: give torchrun --nproc-per-node {here}")
        torch.cuda.set_device(number)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error, when others may wait for this process: torchrun ends them


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def first() -> bool:
    """Whether this process decides, measures, writes and speaks."""
    return rank() == 0


def first_here() -> bool:
    """Whether this is the first process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def from_first(compute: Callable[[], T]) -> T:
    """What the first process computes, or the error that it meets, in all of them."""
    if size() == 1:
        return compute()
    told: list[Any] = [None, None]
    failure: Exception | None = None
    if first():
        try:
            told[0] = compute()
        except Exception as error:
            failure, told[1] = error, str(error) or type(error).__name__
    dist.broadcast_object_list(told, device=_ON_THE_HOST)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise Elsewhere(told[1])
    return told[0]  # type: ignore[no-any-return]


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """The function, computed by the first process and told to all."""

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        return from_first(lambda: function(*args, **kwargs))

    return told


def each_from_first(items: Callable[[], Iterable[T]]) -> Iterator[T]:
    """What the first process iterates over, one after another, in all of them; only the first one makes the items."""
    if size() == 1:
        yield from items()
        return
    source = iter(items()) if first() else iter(())

    def one() -> list[T]:
        return list(islice(source, 1))

    while found := from_first(one):
        yield found[0]


def any_of(*wishes: int) -> list[int]:
    """Of each number, such as a flag, the largest that a process has."""
    if size() == 1:
        return [int(wish) for wish in wishes]
    numbers = torch.tensor([int(wish) for wish in wishes])
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return [int(number) for number in numbers]


def own_part(count: int) -> slice:
    """Which of the `count` images of a batch are this process's; parts are equal, or differ by one image."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def place_of(count: int) -> tuple[int, int]:
    """Where this process's `count` images begin in the whole batch, and how many that has."""
    if size() == 1:
        return 0, count
    counts = torch.zeros(size(), dtype=torch.int64)
    counts[rank()] = count
    dist.all_reduce(counts)
    return int(counts[: rank()].sum()), int(counts.sum())


def summed(tensor: Tensor) -> Tensor:
    """The sum over the processes; the tensor itself may change."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def largest(tensor: Tensor) -> Tensor:
    """The element-wise maximum over the processes; the tensor itself may change."""
    if size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def alike_(model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)


def add_up_(model: nn.Module, loss: Tensor, right: Tensor | None, images: int) -> tuple[Tensor, Tensor | None, int]:
    """Make of the gradients of this process's part of a batch those of the whole batch, in `.grad`.

    `loss` is the mean over its `images`; returned are the whole batch's mean loss, right answers and images. Batch
    norm's running statistics become the mean over the processes, weighted by images. A parameter that no process has a
    gradient for keeps none. Everything goes in one message, after the backward pass.
    """
    if size() == 1:
        return loss, right, images
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    known = torch.tensor([images, *(parameter.grad is not None for parameter in parameters)])
    dist.all_reduce(known)
    total, *holders = known.tolist()
    gradients: list[Tensor] = []
    for parameter, held in zip(parameters, holders):
        if held:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    mean_loss = loss.detach().float().clone()
    _mean_([*gradients, *_statistics(model), mean_loss], images / total)
    return mean_loss, None if right is None else summed(right.clone()), total


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            yield from (layer.running_mean, layer.running_var)


def _mean_(tensors: list[Tensor], share: float) -> None:
    """Make each tensor the sum over the processes of `share` times theirs, those of one type in one message."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike]).mul_(share)
        dist.all_reduce(flat)
        for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike])):
            tensor.copy_(part.view(tensor.shape))
