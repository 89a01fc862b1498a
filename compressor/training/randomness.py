"""Random numbers that can be had again: seeds as a function of place in the run."""

import hashlib
import random

import numpy as np
import torch


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
