"""Where and how precisely a network computes, and random numbers that can be had again."""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from compressor.errors import UsageError
from compressor.training.settings import TrainSettings


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**63 that is a function of its parts, such as `(seed, "order", epoch)`; unlike sums of them,
    seeds of neighbouring places are unrelated.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: torch.device, *parts: int | str) -> torch.Generator:
    """A generator on the device that starts at `derive_seed(*parts)`."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def seed_everything_(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, which dropout and users' code draw from."""
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)  # noqa: NPY002  the global one is what users' code may draw from
    torch.manual_seed(derive_seed(seed, "torch"))


def choose_device(name: str) -> torch.device:
    """The device that a setting names; "auto" is the process's own GPU where there is one, else the CPU.

    Raises UsageError for a device that does not exist here.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, number = name.partition(":")
    index = int(number) if number.isdigit() else torch.cuda.current_device() if torch.cuda.is_available() else 0
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:NUMBER")
    if kind == "cpu":
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise UsageError(f"there is no {name} here ({torch.cuda.device_count()} GPUs are usable): choose auto or cpu")
    return torch.device("cuda", index)


def uses_bfloat16(device: torch.device) -> bool:
    """Whether forward passes run in bfloat16 where that is safe: on a GPU with the arithmetic for it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def numerics(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """torch's global switches as the settings want them; they are put back afterwards."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    if settings.deterministic:
        # cuBLAS reads it when it is first used; without it, it refuses to run under deterministic algorithms.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # An operator without a deterministic form warns and is used: better than a run that cannot be made.
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = settings.deterministic
    torch.backends.cudnn.benchmark = settings.autotune and not settings.deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[2:]
