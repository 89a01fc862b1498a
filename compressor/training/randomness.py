"""Random numbers that can be had again: seeds as a function of place in the run, and the generators' states."""

import hashlib
import random
from typing import Any

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


def random_states() -> dict[str, Any]:
    """The states of the global generators as plain data and tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states_(states: dict[str, Any]) -> None:
    """Put the global generators back to `random_states()`; GPUs that are not there any more are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)
