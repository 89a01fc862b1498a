"""What is global, left for the time of a call and then as it was: the user's modes of torch, the random generators.

And wrappers around a model, opened.
"""

import functools
import gc
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from compressor.errors import ModelError, UsageError

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


def random_states() -> dict[str, Any]:
    """The states of the global generators as plain data and tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_random_states_(states: dict[str, Any]) -> None:
    """Put the global generators back to `random_states()`; GPUs that are not there any more are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)


class Draws:
    """Whether code draws numbers from the global generators, from when this is made."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = _states()

    def steer(self, read: bool) -> bool:
        """Whether it drew numbers that may steer it: Python's and NumPy's always, torch's where values were read."""
        python, numpy, torchs = _states()
        same = python == self._python and all(map(np.array_equal, numpy, self._numpy))
        return not same or (read and not torch.equal(torchs, self._torch))


def _states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global generator starts at `seed`; afterwards each goes on where it was."""
    before = random_states()
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002  the global one is what users' code may draw from
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU that is not in use yet, for good
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        restore_random_states_(before)


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


def reducing(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The wrapper that adds up gradients over processes, if there is one."""
    inner: Any = model
    while inner is not None and not isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = getattr(inner, "_orig_mod", None)
    return inner


@contextmanager
def without_reducer(wrapper: nn.parallel.DistributedDataParallel | None) -> Iterator[None]:
    """Meanwhile the wrapper holds no buckets of the parameters' sizes; they are made anew, as after unpickling it."""
    if wrapper is None:
        yield
        return
    state = wrapper.__getstate__()
    del wrapper.reducer, wrapper.logger
    try:
        yield
    finally:
        wrapper.__setstate__(state)
        for hook, given in wrapper._comm_hooks:
            torch.distributed._register_comm_hook(wrapper.reducer, given, hook)  # type: ignore[attr-defined]
