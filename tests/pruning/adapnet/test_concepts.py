"""Algorithm 1 on clusters laid out by hand, and boundary points against brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from compressor.pruning.adapnet.clusters import Clustering
from compressor.pruning.adapnet.concepts import boundary_points, detect, useless
from compressor.pruning.adapnet.settings import AdapNetSettings

SETTINGS = AdapNetSettings()


def brute_force_boundary(points: np.ndarray, fraction: float) -> list[int]:
    count = len(points)
    k = max(1, math.floor(math.sqrt(count)))
    reverse = [0] * count
    for i in range(count):
        distances = [np.linalg.norm(points[i] - points[j]) if j != i else math.inf for j in range(count)]
        for j in sorted(range(count), key=distances.__getitem__)[:k]:
            reverse[j] += 1
    return sorted(range(count), key=reverse.__getitem__)[: max(1, math.floor(fraction * count))]


@pytest.mark.parametrize("count", [5, 9, 40])
def test_boundary_points_equal_brute_force(count: int) -> None:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    assert boundary_points(points, 0.2).tolist() == brute_force_boundary(points.numpy(), 0.2)


def test_boundary_points_of_a_ball_lie_outside() -> None:
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    border = points[boundary_points(points, 0.2)]
    assert float(border.norm(dim=1).mean()) > 1.3 * float(points.norm(dim=1).mean())


def laid_out(candidate: float) -> Clustering:
    """One old cluster, a ring of radius about 1 round 0, and a new one whose centre is at `candidate` on the x axis."""
    angles = torch.linspace(0, 2 * math.pi, 25, dtype=torch.float64)[:-1]
    ring = torch.stack([angles.cos(), angles.sin()], dim=1)
    points = torch.cat([ring, ring[:8] * 0.01 + torch.tensor([candidate, 0.0])])
    labels = torch.cat([torch.zeros(24), torch.ones(8)]).long()
    return Clustering(points, torch.tensor([[0.0, 0.0], [candidate, 0.0]], dtype=torch.float64), labels)


UNEQUAL = torch.tensor([[100.0, 0.0], [0.0, 100.0], [50.0, 50.0]]).double()
EQUAL = torch.tensor([[50.0, 50.0]] * 3).double()


@pytest.mark.parametrize(
    ("place", "accepted"),
    [(0.0, False), (0.5, False), (1.0, False), (1.2, False), (3.0, True)],
    ids=["on the centre", "inside", "on the ring", "just outside", "far"],
)
def test_a_concept_must_lie_outside_the_nearest_ones_boundary(place: float, accepted: bool) -> None:
    found = laid_out(place)
    for shift in (0.0, 5.0):  # of everything together
        moved = Clustering(found.points + shift, found.centres + shift, found.labels)
        assert detect(UNEQUAL, [0], moved, 5, 0.9, SETTINGS) == [1] * accepted


def test_a_cluster_that_all_filters_feed_equally_is_no_concept() -> None:
    assert detect(EQUAL, [0], laid_out(3.0), 5, 0.9, SETTINGS) == []


def test_more_counts_make_a_slight_difference_between_filters_a_concept() -> None:
    slight = torch.tensor([[60.0, 40.0], [40.0, 60.0], [50.0, 50.0]]).double()
    assert detect(slight, [0], laid_out(3.0), 5, 0.5, SETTINGS) == []
    surer = replace(SETTINGS, chi_s_concepts=200.0)
    p_value = chisquare([120.0, 80.0, 100.0]).pvalue
    assert detect(slight, [0], laid_out(3.0), 5, p_value * 1.001, surer) == [1]
    assert detect(slight, [0], laid_out(3.0), 5, p_value * 0.999, surer) == []
    assert useless(slight, [0, 1], 5, 0.5, SETTINGS) == [0, 1] and useless(slight, [0, 1], 5, 0.5, surer) == []


def test_the_first_concept_needs_no_distance_and_the_second_sees_it() -> None:
    assert detect(UNEQUAL, [], laid_out(0.5), 5, 0.9, SETTINGS) == [0]
    assert detect(UNEQUAL, [], laid_out(3.0), 5, 0.9, SETTINGS) == [0, 1]


def test_a_neighbour_of_few_points_has_no_boundary() -> None:
    found = laid_out(0.5)
    few = Clustering(found.points[20:], found.centres, found.labels[20:])
    assert detect(UNEQUAL, [0], few, 5, 0.9, SETTINGS) == [1]


def test_clusters_with_hardly_a_count_are_not_judged() -> None:
    table = torch.tensor([[100.0, 4.0], [100.0, 0.0]]).double()
    assert detect(table, [0], laid_out(3.0), 5, 0.9, SETTINGS) == []


def test_filters_with_little_data_count_only_at_the_first_two_boundaries() -> None:
    table = torch.tensor([[0.0, 30.0], [50.0, 50.0], [50.0, 50.0]]).double()
    assert detect(table, [0], laid_out(3.0), 1, 0.9, SETTINGS) == [1]
    assert detect(table, [0], laid_out(3.0), 2, 0.9, SETTINGS) == []


def test_useless_concepts_are_those_that_became_uniform() -> None:
    table = torch.tensor([[90.0, 10.0, 50], [10.0, 90.0, 50], [10.0, 90.0, 50]]).double()
    assert useless(table, [0, 2], 5, 0.9, SETTINGS) == [2]
    assert useless(table / 5, [0, 2], 5, 0.9, SETTINGS) == []  # nobody to tell: thirty maps are too few
