"""Algorithm 2 and its limits on tables made by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.graph.capture import capture
from compressor.pruning.adapnet.prune import biased, candidates, cosine_threshold, dead, fewest, pairs, relative_costs
from compressor.pruning.adapnet.settings import AdapNetSettings
from tests.pruning.adapnet.running import Running, small_net

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
    assert list(found) == [0, 1]
    assert found[0]["p_value"] > found[1]["p_value"] > found[0]["beta"] == 0.9
    assert found[0]["kse"] == 0.0 and found[0]["gamma1"] == 0.6


def test_a_filter_whose_kernels_tell_the_next_layer_much_stays() -> None:
    values = torch.tensor([0.7] + [0.1] * 9, dtype=torch.float64)
    assert list(candidates(table(), CONCEPTS, everyone(), 5, 0.9, lambda: values, SETTINGS)) == [1]


@pytest.mark.parametrize(
    ("eligible", "room", "cap", "seen", "expected"),
    [
        ([False] + [True] * 9, 5, 1.0, 1.0, [1]),
        ([True] * 10, 1, 1.0, 1.0, [0]),
        ([True] * 10, 0, 1.0, 1.0, []),
        ([True] * 10, 5, 0.1, 1.0, [0]),
        ([True] * 10, 5, 1.0, 0.3, []),
    ],
    ids=["protected", "room for one", "no room", "cap of a tenth", "too little data"],
)
def test_limits_hold(eligible: list[bool], room: int, cap: float, seen: float, expected: list[int]) -> None:
    settings = replace(SETTINGS, prune_cap=cap)
    found = candidates(seen * table(), CONCEPTS, torch.tensor(eligible), room, 0.9, low, settings)
    assert list(found) == expected


def test_kse_is_not_computed_when_no_filter_is_uniform() -> None:
    def never() -> torch.Tensor:
        raise AssertionError("computed in vain")

    assert candidates(table()[2:], CONCEPTS, everyone(8), 5, 0.9, never, SETTINGS) == {}


def test_one_concept_is_too_few_to_judge_by() -> None:
    assert candidates(table(), [0], everyone(), 5, 0.1, low, SETTINGS) == {}


def test_a_group_keeps_a_twentieth_and_two_at_least() -> None:
    assert [fewest(original, SETTINGS) for original in (8, 64, 512)] == [2, 4, 26]


def test_dead_filters_have_been_silent_for_two_periods_and_are_unprotected() -> None:
    silent = torch.tensor([2, 1, 3, 5])
    protected = torch.tensor([False, False, False, True])
    assert dead(silent, protected, room=9) == [0, 2]
    assert dead(silent, protected, room=1) == [0]


def test_costs_are_the_parameters_that_the_network_saves_without_one_channel() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8), nn.Conv2d(4, 16, 1), nn.Flatten(), nn.Linear(64, 50)
    )
    costs = relative_costs(capture(network, torch.zeros(1, 3, 16, 16)), ["0", "3"])
    saved = {"0": 3 * 9 + 1 + 16, "3": 4 + 1 + 4 * 50}
    assert costs == pytest.approx({name: 2 * saved[name] / sum(saved.values()) for name in saved})
    assert biased(0.5, costs["3"], 1.0) < biased(0.5, costs["3"], 0.0) == 0.5 < biased(0.5, costs["0"], 1.0) <= 1.0
    assert biased(0.5, costs["0"], -1.0) < 0.5 < biased(0.5, costs["3"], -1.0) <= 1.0


def test_the_parameters_bias_moves_the_threshold_by_layer() -> None:
    torch.manual_seed(0)
    settings = AdapNetSettings(lsep=10, dict_size=96, beta_start=0.5, params_bias=1.0)
    running = Running(settings, small_net())
    running.train(60)
    found = {
        (edit.group, edit.numbers["beta"]) for plan in running.plans for edit in plan.edits if edit.kind == "prune"
    }
    early = [beta for group, beta in found if group == "0"]
    late = [beta for group, beta in found if group == "7"]
    assert late and max(late) < 0.5 and all(beta > 0.5 for beta in early)


ALL_PAIRS = replace(AdapNetSettings(), merge_cap=1.0)


def similarity(filters: int, **given: float) -> torch.Tensor:
    """0.1 everywhere but for the pairs given as `p01=0.9`."""
    matrix = torch.full((filters, filters), 0.1, dtype=torch.float64).fill_diagonal_(1.0)
    for name, value in given.items():
        i, j = int(name[1]), int(name[2])
        matrix[i, j] = matrix[j, i] = value
    return matrix


def alike(filters: int) -> torch.Tensor:
    return torch.full((filters, 4), 0.25, dtype=torch.float64)


def all_of(filters: int) -> torch.Tensor:
    return torch.ones(filters, dtype=torch.bool)


def test_most_alike_pairs_first_and_each_filter_once() -> None:
    found = pairs(similarity(6, p01=0.9, p12=0.8, p34=0.7), alike(6), all_of(6), 9, ALL_PAIRS)
    assert list(found) == [(0, 1), (3, 4)]
    assert [numbers["cosine"] for numbers in found.values()] == [0.9, 0.7]
    assert found[0, 1]["gamma2"] == pytest.approx(2 * (12 * 0.1 + 0.9 + 0.8 + 0.7) / 15)


def test_threshold_is_twice_the_mean_of_the_other_pairs_and_capped() -> None:
    matrix = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)).double()
    mean = sum(float(matrix[i, j]) for i in range(7) for j in range(7) if i != j) / 42
    assert cosine_threshold(matrix / 2) == pytest.approx(mean)
    assert cosine_threshold(torch.ones(3, 3).double()) == 0.95


def test_filters_of_different_concepts_do_not_merge() -> None:
    shares = alike(6)
    shares[0] = torch.tensor([1.0, 0, 0, 0])
    shares[1] = torch.tensor([0.1, 0.9, 0, 0])
    found = pairs(similarity(6, p01=0.9, p23=0.8), shares, all_of(6), 9, ALL_PAIRS)
    assert list(found) == [(2, 3)]
    assert found[2, 3]["chebyshev"] == 0.0
    shares[1] = torch.tensor([0.25, 0.75, 0, 0])
    near = pairs(similarity(6, p01=0.9), shares, all_of(6), 9, ALL_PAIRS)
    assert near[0, 1]["chebyshev"] == pytest.approx(0.75)  # below 0.8


def test_limits_of_pairs_hold() -> None:
    matrix = similarity(6, p01=0.9, p23=0.8)
    assert len(pairs(matrix, alike(6), all_of(6), 1, ALL_PAIRS)) == 1
    assert pairs(matrix, alike(6), all_of(6), 0, ALL_PAIRS) == {}
    assert len(pairs(matrix, alike(6), all_of(6), 9, replace(ALL_PAIRS, merge_cap=0.05))) == 1
    assert pairs(matrix, alike(6)[:, :1], all_of(6), 9, ALL_PAIRS) == {}
    frozen = torch.tensor([False, True, True, True, True, True])
    assert list(pairs(matrix, alike(6), frozen, 9, ALL_PAIRS)) == [(2, 3)]


def test_duplicates_merge_even_where_all_maps_are_alike() -> None:
    matrix = torch.full((4, 4), 0.9, dtype=torch.float64).fill_diagonal_(1.0)
    matrix[0, 3] = matrix[3, 0] = 1.0
    assert list(pairs(matrix, alike(4), all_of(4), 9, ALL_PAIRS)) == [(0, 3)]
