"""The global random generators: their states, and a time in which they start at a seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


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
