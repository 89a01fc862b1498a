"""Seeds by place, and generators that can be put back; the settings stay light."""

import random
import subprocess
import sys

import numpy as np
import torch

from compressor.graph.neutral import random_states, restore_random_states_
from compressor.training.numerics import derive_seed, seed_everything_


def test_seeds_of_different_places_differ():
    seeds = {
        derive_seed(seed, kind, epoch) for seed in range(5) for kind in ("order", "augment") for epoch in range(50)
    }
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def draws() -> tuple[float, ...]:
    numpy_draw = float(np.random.normal())  # noqa: NPY002  the global generator is the one under test
    return random.random(), random.gauss(0, 1), numpy_draw, float(torch.rand(())), float(torch.randn(()))


def test_states_bring_the_same_draws_back():
    seed_everything_(3)
    draws()
    states = random_states()
    first = draws()
    draws()
    restore_random_states_(states)
    assert draws() == first


def test_seeding_repeats_the_draws():
    seed_everything_(3)
    first = draws()
    seed_everything_(3)
    assert draws() == first
    seed_everything_(4)
    assert draws() != first


def test_settings_are_read_without_torch():
    code = "import sys, compressor.training.settings; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
