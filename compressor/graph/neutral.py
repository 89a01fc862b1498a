"""The user's modes of torch, left for the time of a call, and wrappers around a model, opened."""

import functools
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from compressor.errors import ModelError, UsageError
from compressor.graph.generators import random_states, restore_random_states_

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def neutral() -> Iterator[None]:
    """Meanwhile torch is as it starts: no inference mode, no autocast, no mode of the user's that watches operators.

    In inference mode composite operators are not taken apart, autocast inserts casts, a counter of operators would
    count ours, and gradients are needed to score. The default device and type stay: the model's own code may rely on
    them.

    Raises:
        UsageError: called inside vmap, grad and the like, where tensors have no data of their own.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UsageError("this cannot be called inside torch.func's transforms (vmap, grad, jvp): call it outside them")
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:  # what is compiled inside runs as it is written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        yield


class AsWritten:
    """While someone is inside, compiled models run as they are written: they would not see hooks that come and go."""

    def __init__(self) -> None:
        self._inside = 0
        self._stance = ExitStack()

    def __enter__(self) -> None:
        self._inside += 1
        if self._inside == 1 and "torch._dynamo" in sys.modules:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        if not self._inside:
            self._stance.close()


as_written = AsWritten()


@contextmanager
def uncollected() -> Iterator[None]:
    """Meanwhile Python collects no garbage: one full collection takes as long as a whole capture."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def afresh() -> Iterator[None]:
    """Meanwhile torch is as in a new process: in `neutral()`, and tensors are made on the CPU and in float32.

    The global random generators go on afterwards where they were.

    Raises:
        UsageError: as in `neutral()`.
    """
    kind, generators = torch.get_default_dtype(), random_states()
    with neutral(), ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(kind)
            restore_random_states_(generators)


_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


def neutrally(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs in `neutral()`."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with neutral():
            return function(*args, **kwargs)

    return inside


def bare(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile.

    Raises:
        UsageError: this is no nn.Module.
        ModelError: FSDP has spread the weights over processes.
    """
    if isinstance(model, type) or not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UsageError(f"a torch.nn.Module is needed, not {given}; compressor.load makes one of a file")
    inner: Any = model
    while isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(inner, "_orig_mod"):
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    for module in inner.modules() if torch.distributed.is_available() and torch.distributed.is_initialized() else ():
        if "FullyShardedDataParallel" in {kind.__name__ for kind in type(module).__mro__} or _is_sharded(module):
            raise ModelError(
                f"{type(module).__name__} has spread the weights over processes: work on the model before it is "
                "wrapped (FSDP's .module holds only a part), then wrap it"
            )
    found: nn.Module = inner
    return found


def _is_sharded(module: nn.Module) -> bool:
    return any(type(tensor).__name__ == "DTensor" for tensor in module._parameters.values())
