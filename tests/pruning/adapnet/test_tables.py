"""The tables against SciPy, and their bookkeeping under random edits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from compressor.pruning.adapnet import tables

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
