"""Algorithm 2 and its limits on tables made by hand."""

from dataclasses import replace

import pytest
import torch

from compressor.methods.adapnet.prune import candidates, dead, fewest
from compressor.methods.adapnet.settings import AdapNetSettings

SETTINGS = replace(AdapNetSettings(), prune_cap=1.0)
CONCEPTS = [0, 1, 2, 3]


def table(filters: int = 10) -> torch.Tensor:
    """Filters 0 and 1 are active on all four concepts alike, the others on one each, as many on every concept."""
    rows = [[25.0, 25, 25, 25], [30.0, 20, 25, 25]]
    return torch.tensor(rows + [[100.0 if j == i % 4 else 0.0 for j in range(4)] for i in range(filters - 2)]).double()


def everyone(filters: int = 10) -> torch.Tensor:
    return torch.ones(filters, dtype=torch.bool)


def low(filters: int = 10) -> torch.Tensor:
    return torch.zeros(filters, dtype=torch.float64)


def test_uniform_filters_are_candidates_most_uniform_first() -> None:
    found = candidates(table(), CONCEPTS, everyone(), 5, 0.9, low, SETTINGS)
    assert [one.filter for one in found] == [0, 1]
    assert found[0].p_value > found[1].p_value > found[0].beta == 0.9
    assert found[0].kse == 0.0 and found[0].gamma1 == 0.6


def test_a_filter_whose_kernels_tell_the_next_layer_much_stays() -> None:
    values = torch.tensor([0.7] + [0.1] * 9, dtype=torch.float64)
    assert [one.filter for one in candidates(table(), CONCEPTS, everyone(), 5, 0.9, lambda: values, SETTINGS)] == [1]


@pytest.mark.parametrize(
    ("eligible", "room", "cap", "row_min", "expected"),
    [
        ([False] + [True] * 9, 5, 1.0, 40, [1]),
        ([True] * 10, 1, 1.0, 40, [0]),
        ([True] * 10, 0, 1.0, 40, []),
        ([True] * 10, 5, 0.1, 40, [0]),
        ([True] * 10, 5, 1.0, 101, []),
    ],
    ids=["protected", "room for one", "no room", "cap of a tenth", "too little data"],
)
def test_limits_hold(eligible: list[bool], room: int, cap: float, row_min: int, expected: list[int]) -> None:
    settings = replace(SETTINGS, prune_cap=cap, row_min=row_min)
    found = candidates(table(), CONCEPTS, torch.tensor(eligible), room, 0.9, low, settings)
    assert [one.filter for one in found] == expected


def test_kse_is_not_computed_when_no_filter_is_uniform() -> None:
    def never() -> torch.Tensor:
        raise AssertionError("computed in vain")

    assert candidates(table()[2:], CONCEPTS, everyone(8), 5, 0.9, never, SETTINGS) == []


def test_one_concept_is_too_few_to_judge_by() -> None:
    assert candidates(table(), [0], everyone(), 5, 0.1, low, SETTINGS) == []


def test_a_group_keeps_a_twentieth_and_two_at_least() -> None:
    assert [fewest(original, SETTINGS) for original in (8, 64, 512)] == [2, 4, 26]


def test_dead_filters_have_been_silent_for_two_periods_and_are_unprotected() -> None:
    silent = torch.tensor([2, 1, 3, 5])
    protected = torch.tensor([False, False, False, True])
    assert dead(silent, protected, room=9) == [0, 2]
    assert dead(silent, protected, room=1) == [0]
