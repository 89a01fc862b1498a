"""No model file runs code, fills the memory, takes long or leaves anything behind; each is refused in one line."""

import contextlib
import warnings
from typing import Any

import pytest
import torch

from tests.faults.corpus import CASES
from tests.faults.hostile_pickles import FIRES
from tests.faults.runs import told_by

_SECONDS, _BYTES = 10.0, 2 << 30


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every file of the corpus did to the command that it was given to; see attack.py."""
    return told_by("attack", tmp_path_factory.mktemp("attack"))


@pytest.mark.parametrize("name", CASES)
def test_hostile_file_is_refused_in_one_line(outcomes, name):
    outcome = outcomes[name]
    if name.startswith("mutation") and outcome["code"] == 0:
        return  # the value that was changed does no harm
    told = [line for line in outcome["said"].splitlines() if line and not line.endswith(" ...")]
    lines = [line for line in told if not line.startswith("note: ")]
    assert outcome["code"] in (1, 2), outcome["said"]
    assert len(lines) == 1, outcome["said"]
    assert lines[0].startswith("error: ")
    assert all(line.isprintable() for line in told)
    assert len(lines[0]) < 2000  # the list of torchvision's networks is long


@pytest.mark.parametrize("name", CASES)
def test_hostile_file_costs_little_and_leaves_nothing(outcomes, name):
    outcome = outcomes[name]
    assert outcome["seconds"] < _SECONDS
    assert outcome["bytes"] < _BYTES
    assert outcome["written"] == []


def test_corpus_is_large():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", FIRES)
def test_canary_is_left_where_nobody_takes_care(tmp_path, name):
    """The control: the same file does its harm to whoever opens it without restriction."""
    canary = tmp_path / "canary"
    FIRES[name](tmp_path / "m.pt", canary)
    assert not canary.exists()
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # many a file is broken besides
        warnings.simplefilter("ignore")
        torch.load(tmp_path / "m.pt", weights_only=False)
    assert canary.exists()
