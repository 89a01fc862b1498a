"""What a refused call must leave as it was: a model with its optimizer, random generators, settings of torch, files."""

import copy
import gc
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_PLAIN = (int, float, bool, str, tuple, list, dict, type(None), torch.Size)


def everything(model: nn.Module | None, optimizer: Any = None, folder: Path | None = None) -> dict[str, Any]:
    """All of it, as it stands now, for `difference`; without a model only the folder's files."""
    if model is None:
        return {"files": {} if folder is None else files(folder)}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        "tensors": {name: _tensor(each) for name, each in tensors.items()},
        "modules": {name: _module(each) for name, each in modules.items()},
        "optimizer": None if optimizer is None else _optimizer(optimizer),
        "generators": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1]),  # noqa: NPY002
        "process": (
            torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), gc.isenabled(),
            torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(),
        ),
        "files": {} if folder is None else files(folder),
    }  # fmt: skip


def files(folder: Path) -> dict[str, Any]:
    """Every file below a folder with its content and permissions, every folder, every link."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }


def _tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    values = tensor.detach().clone()
    grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.detach().clone())
    hooks = [*(tensor._backward_hooks or ())], [*(getattr(tensor, "_post_accumulate_grad_hooks", None) or ())]
    kind = tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride(), type(tensor)
    return id(tensor), values, grad, hooks, kind, [*vars(tensor)]


def _module(module: nn.Module) -> dict[str, Any]:
    """Attributes: plain ones by value, others by the object, containers of torch's by what they hold."""
    found: dict[str, Any] = {"class": type(module)}
    for name, value in vars(module).items():
        if isinstance(value, dict) and (name in ("_parameters", "_buffers", "_modules") or name.endswith("_hooks")):
            found[name] = [(key, id(each)) for key, each in value.items()]
        else:
            found[name] = (id(value), copy.deepcopy(value) if type(value) in _PLAIN and _is_plain(value) else None)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else type(value) in _PLAIN


def _optimizer(optimizer: Any) -> Any:
    if not isinstance(optimizer, torch.optim.Optimizer):
        return id(optimizer)
    groups = [[id(each) for each in group["params"]] for group in optimizer.param_groups]
    held = {id(key): [(name, id(each)) for name, each in state.items()] for key, state in optimizer.state.items()}
    return groups, held, copy.deepcopy(optimizer.state_dict())


def same(one: Any, other: Any) -> bool:
    """Whether nested plain data and tensors are equal; bit by bit, NaN included."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def difference(one: Any, other: Any, path: str = "") -> str:
    """Where two of them differ, for a message; "" where they do not."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((found for key in one if (found := difference(one[key], other[key], f"{path}/{key}"))), "")
    return "" if same(one, other) else f"{path}: {one!r:.200} became {other!r:.200}"


@contextmanager
def untouched(model: nn.Module | None, optimizer: Any = None, folder: Path | None = None) -> Iterator[None]:
    """Fail where something is not as it was at the beginning."""
    before = everything(model, optimizer, folder)
    yield
    found = difference(before, everything(model, optimizer, folder))
    assert not found, found


@contextmanager
def interrupted_at(number: int, room: str = "compressor") -> Iterator[Callable[[], int]]:
    """Ctrl-C as the `number`-th function of the project is entered; yields how many were entered so far.

    Generators do not count: they are entered to be thrown away, too, where no error can leave.
    """
    count, inside = [0], f"{Path(__file__).parents[1] / room}/"

    def enter(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(inside) and not code.co_flags & inspect.CO_GENERATOR:
            count[0] += 1
            if count[0] == number:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(enter)
    try:
        yield lambda: count[0]
    finally:
        sys.setprofile(None)
