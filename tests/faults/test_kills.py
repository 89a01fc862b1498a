"""A run killed with SIGKILL at any moment and resumed ends at the weights, bit for bit, of the run left alone."""

import random
from typing import Any

import pytest

from tests.faults.runs import RUNS, told_by

_EDITING = ("prune", "adapnet")  # the runs in which surgery changes the network


def moments_of(name: str) -> list[str]:
    """At random, in the writing of a checkpoint, and in an edit where there is one."""
    draw = random.Random(name)
    moments = [f"{draw.uniform(0.2, 0.9):.2f}", f"fsync:{draw.randint(2, 5)}", f"rename:{draw.randint(2, 8)}"]
    return [*moments, f"{draw.uniform(0.2, 0.9):.2f}", *([f"edit:{draw.randint(1, 6)}"] if name in _EDITING else [])]


def check(found: dict[str, Any], least: int) -> None:
    assert found["kills"] >= least
    assert found["weights"]
    assert found["report"]
    assert found["left"] == []


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_end(tmp_path):
    check(told_by("killing", tmp_path, "prune", "edit:3", "rename:4"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_run_killed_at_random_resumes_to_the_same_end(tmp_path, name):
    check(told_by("killing", tmp_path, name, *moments_of(name)), 3)


def test_every_run_is_killed_often_enough():
    assert sum(len(moments_of(name)) for name in RUNS) >= 20
