"""The tables against SciPy, and their bookkeeping under random edits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from compressor.pruning.adapnet import tables
from compressor.pruning.adapnet.clusters import Clustering
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.tables import boundary_points, detect, useless

EIGHT = torch.ones(8, dtype=torch.float64).index_fill(0, torch.tensor(0), 2.0) / 9


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randint(0, 30, (7, 6), generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    ("row", "expected", "tolerance"),
    [
        (torch.full((5,), 0.2).double(), 1.0, 1e-9),
        (torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6]).double(), 0.083, 1e-3),
        (EIGHT, 0.973, 1e-3),
        (torch.tensor([1.0, 0.0, 0.0, 0.0]).double(), 0.0, 1e-12),
    ],
    ids=["uniform", "one of 4 at a half", "one of 8 doubled", "one-hot"],
)
def test_uniformity_of_known_rows(row: torch.Tensor, expected: float, tolerance: float) -> None:
    assert float(tables.uniformity(row[None], 20.0)[0]) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("strength", [12.0, 20.0, 64.0])
def test_row_test_equals_scipys_chi_square(table: torch.Tensor, strength: float) -> None:
    p = tables.row_uniformity(table, [0, 2, 3, 5], strength)
    for i, shares in enumerate(tables.concept_shares(table, [0, 2, 3, 5])):
        assert float(p[i]) == pytest.approx(chisquare(strength * shares.numpy()).pvalue, abs=1e-12)


def test_column_test_equals_scipys_chi_square_over_the_reliable_filters(table: torch.Tensor) -> None:
    rows = torch.tensor([True, True, False, True, True, False, True])
    p = tables.column_uniformity(table, rows, 20.0)
    shares = (table / table.sum(1, keepdim=True)).numpy()[rows.numpy()]
    for j in range(6):
        assert float(p[j]) == pytest.approx(chisquare(20.0 * shares[:, j]).pvalue, abs=1e-12)


def test_rows_that_say_nothing_pass_no_comparison() -> None:
    p = tables.uniformity(torch.tensor([[0.0, 0.0], [0.5, 0.5]]).double(), 20.0)
    assert not p[0] < 0.5 and not p[0] > 0.5 and float(p[1]) == 1.0
    assert tables.uniformity(torch.ones(3, 1).double(), 20.0).isnan().all()
    assert tables.uniformity(torch.ones(2, 0).double(), 20.0).isnan().all()


def test_concept_shares_follow_equation_1(table: torch.Tensor) -> None:
    concepts, r = [1, 4, 5], table.numpy()
    rows = r[:, concepts] / r[:, concepts].sum(1, keepdims=True)
    expected = np.zeros((7, 3))
    for i in range(7):
        for j in range(3):
            expected[i, j] = rows[i, j] / rows[:, j].sum()
    np.testing.assert_allclose(tables.concept_shares(table, concepts), expected / expected.sum(1, keepdims=True))


def test_one_very_common_cluster_does_not_make_every_filter_specialised() -> None:
    table = torch.tensor([[900.0, 30, 30], [900.0, 30, 30], [900.0, 30, 30]]).double()
    assert float(tables.row_uniformity(table, [0, 1, 2], 20.0).min()) == pytest.approx(1.0)


def test_counting_labels_equals_a_loop() -> None:
    rows, labels = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1, 1, 0, 3, 1])
    expected = torch.zeros(3, 4).double()
    for row, label in zip(rows, labels):
        expected[row, label] += 1
    assert torch.equal(tables.count_labels(rows, labels, 3, 4), expected)


EDITS = st.lists(
    st.tuples(st.sampled_from(["merge", "insert", "add", "drop"]), st.integers(0, 99), st.integers(0, 99)), max_size=25
)


@settings(max_examples=60, deadline=None)
@given(EDITS)
def test_rows_and_columns_match_filters_and_clusters_after_any_edits(edits: list[tuple[str, int, int]]) -> None:
    """A table of filter number + cluster number / 1000 must read so after any edits; merged rows are their mean."""
    filters, clusters, concepts = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [1, 3]
    of_concepts = {clusters[q] for q in concepts}
    table = torch.tensor(filters).double()[:, None] + torch.tensor(clusters).double() / 1000
    for kind, a, b in edits:
        if kind == "merge" and len(filters) > 2:
            keep, drop = sorted([a % len(filters), (a + 1 + b % (len(filters) - 1)) % len(filters)])
            table = tables.merge_rows(table, keep, drop)
            filters[keep] = (filters[keep] + filters[drop]) / 2
            del filters[drop]
        elif kind == "insert":
            place = a % (len(filters) + 1)
            table = tables.insert_row(table, place)
            assert not table[place].any()
            filters.insert(place, float(100 + b))
            table[place] = 100 + b + torch.tensor(clusters).double() / 1000
        elif kind == "add":
            table = tables.add_columns(table, len(clusters) + 1)
            assert not table[:, -1].any()
            clusters.append(float(10 + b))
            table[:, -1] = torch.tensor(filters).double() + (10 + b) / 1000
        elif kind == "drop" and (a % len(clusters)) not in concepts:
            table, concepts = tables.drop_columns(table, concepts, [a % len(clusters)])
            del clusters[a % len(clusters)]
    expected = torch.tensor(filters).double()[:, None] + torch.tensor(clusters).double() / 1000
    torch.testing.assert_close(table, expected)
    assert {clusters[q] for q in concepts} == of_concepts


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
