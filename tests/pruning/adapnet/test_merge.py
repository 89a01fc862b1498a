"""Algorithm 3 on similarities made by hand, and against a loop."""

from dataclasses import replace

import pytest
import torch

from compressor.pruning.adapnet.merge import cosine_threshold, pairs
from compressor.pruning.adapnet.settings import AdapNetSettings

SETTINGS = replace(AdapNetSettings(), merge_cap=1.0)


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
    found = pairs(similarity(6, p01=0.9, p12=0.8, p34=0.7), alike(6), all_of(6), 9, SETTINGS)
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
    found = pairs(similarity(6, p01=0.9, p23=0.8), shares, all_of(6), 9, SETTINGS)
    assert list(found) == [(2, 3)]
    assert found[2, 3]["chebyshev"] == 0.0
    shares[1] = torch.tensor([0.25, 0.75, 0, 0])
    near = pairs(similarity(6, p01=0.9), shares, all_of(6), 9, SETTINGS)
    assert near[0, 1]["chebyshev"] == pytest.approx(0.75)  # below 0.8


def test_limits_hold() -> None:
    matrix = similarity(6, p01=0.9, p23=0.8)
    assert len(pairs(matrix, alike(6), all_of(6), 1, SETTINGS)) == 1
    assert pairs(matrix, alike(6), all_of(6), 0, SETTINGS) == {}
    assert len(pairs(matrix, alike(6), all_of(6), 9, replace(SETTINGS, merge_cap=0.05))) == 1
    assert pairs(matrix, alike(6)[:, :1], all_of(6), 9, SETTINGS) == {}
    frozen = torch.tensor([False, True, True, True, True, True])
    assert list(pairs(matrix, alike(6), frozen, 9, SETTINGS)) == [(2, 3)]


def test_duplicates_merge_even_where_all_maps_are_alike() -> None:
    matrix = torch.full((4, 4), 0.9, dtype=torch.float64).fill_diagonal_(1.0)
    matrix[0, 3] = matrix[3, 0] = 1.0
    assert list(pairs(matrix, alike(4), all_of(4), 9, SETTINGS)) == [(0, 3)]
