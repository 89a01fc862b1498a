"""Clusters against scikit-learn and against plain loops; what they carry from one space to the next."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score

from compressor.pruning.adapnet import clusters, subspace
from compressor.pruning.adapnet.clusters import Clustering

MU = 2 * 1.0 / 30.0


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def three_subspaces(generator: torch.Generator, each: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows from three random subspaces of dimension 3 in 30 dimensions, and which of them each is from."""
    bases = torch.randn(3, 3, 30, generator=generator, dtype=torch.float64)
    rows = torch.randn(3, each, 3, generator=generator, dtype=torch.float64) @ bases
    return F.normalize(rows.flatten(0, 1), dim=1), torch.arange(3).repeat_interleave(each)


def solved(rows: torch.Tensor, alpha: float = 0.2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Affinity, eigenvalues, eigenvectors and inverse of one dictionary."""
    valid = torch.ones(1, len(rows), dtype=torch.bool)
    coefficients, inverse = subspace.self_expression((rows @ rows.T)[None], MU)
    graph = subspace.affinity(coefficients, valid, alpha=alpha, tau=0.1)
    values, vectors = subspace.spectrum(graph, valid, 9)
    return graph[0], values[0], vectors[0], inverse[0]


def clustered(points: torch.Tensor, count: int, generator: torch.Generator) -> Clustering:
    start = clusters.seed(points, points[:0], count, generator)
    return clusters.cluster(points, start, torch.zeros(count, dtype=torch.float64))


def test_three_subspaces_are_found_as_scikit_learn_finds_them(generator: torch.Generator) -> None:
    rows, truth = three_subspaces(generator)
    graph, values, vectors, _ = solved(rows)
    assert clusters.eigengap(values, 2, 8) == 3
    found = clustered(clusters.embed(vectors, 3), 3, generator)
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(graph.numpy())
    assert adjusted_rand_score(theirs, truth) == 1.0
    assert adjusted_rand_score(found.labels, truth) == 1.0


def test_maps_outside_the_sample_join_their_subspace(generator: torch.Generator) -> None:
    rows, truth = three_subspaces(generator, each=60)
    inside = torch.arange(len(rows)) % 3 > 0
    dictionary = rows[inside]
    _, _, vectors, inverse = solved(dictionary)
    found = clustered(clusters.embed(vectors, 3), 3, generator)
    labels = clusters.assign(rows[~inside].float(), dictionary.float(), inverse.float(), found)
    assert adjusted_rand_score(labels, truth[~inside]) == 1.0
    again = clusters.assign(dictionary.float(), dictionary.float(), inverse.float(), found)
    assert adjusted_rand_score(again, found.labels) == 1.0


def test_eigengap_looks_only_within_its_limits() -> None:
    values = torch.tensor([1.0, 0.2, 0.19, 0.18, 0.10, 0.09, 0.0])
    assert clusters.eigengap(values, 1, 6) == 1
    assert clusters.eigengap(values, 2, 6) == 6
    assert clusters.eigengap(values, 2, 5) == 4


@pytest.mark.parametrize(
    ("classes", "filters", "dictionary", "limit"),
    [
        (10, 64, 400, 20),
        (2, 64, 400, 16),
        (100, 64, 400, 32),
        (10, 64, 64, 8),
        (None, 24, 400, 24),
        (None, 8, 400, 16),
        (None, 64, 400, 32),
    ],
)
def test_count_limit_follows_classes_or_filters_and_dictionary(
    classes: int | None, filters: int, dictionary: int, limit: int
) -> None:
    assert clusters.count_limit(classes, filters, dictionary) == limit


def test_clusters_without_a_past_are_scikit_learns_k_means(generator: torch.Generator) -> None:
    points = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    start = points[:5].clone()
    found = clusters.cluster(points, start, torch.zeros(5, dtype=torch.float64), iterations=100)
    theirs = KMeans(5, init=start.numpy(), n_init=1, tol=0.0).fit(points.numpy())
    np.testing.assert_array_equal(found.labels, theirs.labels_)
    np.testing.assert_allclose(found.centres, theirs.cluster_centers_, atol=1e-12)


def test_the_past_counts_as_that_many_points_at_the_old_centre(generator: torch.Generator) -> None:
    points = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    start, weights = points[:4].clone() + 0.1, torch.tensor([10.0, 3.0, 0.0, 200.0], dtype=torch.float64)
    found = clusters.cluster(points, start, weights, iterations=7)
    centres = start.numpy().copy()
    for _ in range(7):
        labels = np.argmin(np.linalg.norm(points.numpy()[:, None] - centres[None], axis=2), axis=1)
        for q in range(4):
            mine = points.numpy()[labels == q]
            if weights[q] + len(mine) > 0:
                centres[q] = (float(weights[q]) * start.numpy()[q] + mine.sum(0)) / (float(weights[q]) + len(mine))
    np.testing.assert_allclose(found.centres, centres, atol=1e-12)


def test_new_centres_are_drawn_from_points_far_from_the_old(generator: torch.Generator) -> None:
    points = torch.tensor([[0.0, 0.0]] * 50 + [[1.0, 0.0]], dtype=torch.float64)
    grown = clusters.seed(points, points[:1], 2, generator)
    assert grown.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert clusters.seed(points[:50], points[:1], 3, generator).shape == (3, 2)  # nowhere else to go


def test_centres_are_carried_by_their_exemplars(generator: torch.Generator) -> None:
    rows, truth = three_subspaces(generator)
    _, _, vectors, _ = solved(rows)
    first = clustered(clusters.embed(vectors, 3), 3, generator)
    chosen = clusters.nearest(first, 8)
    owners = torch.arange(3).repeat_interleave(8)
    # The next period: other maps of the same subspaces, after the exemplars.
    fresh = torch.randperm(len(rows), generator=generator)
    dictionary = torch.cat([rows[torch.cat(chosen)], rows[fresh]])
    _, _, vectors, _ = solved(dictionary)
    points = clusters.embed(vectors, 3)
    second = clusters.cluster(points, clusters.transported(points, owners, 3), torch.full((3,), 40.0).double())
    assert torch.equal(second.labels[:24], owners)
    assert torch.equal(second.labels[24:], first.labels[fresh])
    assert adjusted_rand_score(second.labels[24:], truth[fresh]) == 1.0


def test_nearest_gives_points_of_the_cluster_in_order_of_distance(generator: torch.Generator) -> None:
    points = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    found = clustered(points, 4, generator)
    for q, chosen in enumerate(clusters.nearest(found, 3)):
        members = torch.nonzero(found.labels == q).flatten().tolist()
        distances = {i: float((points[i] - found.centres[q]).norm()) for i in members}
        assert chosen.tolist() == sorted(members, key=distances.__getitem__)[:3]


def test_new_clusters_without_points_are_not_kept() -> None:
    points = torch.tensor([[0.0], [0.1], [5.0]], dtype=torch.float64)
    centres = torch.tensor([[9.0], [0.0], [7.0], [5.0]], dtype=torch.float64)
    found = clusters.without_empty(Clustering(points, centres, torch.tensor([1, 1, 3])), old=1)
    assert found.centres.flatten().tolist() == [9.0, 0.0, 5.0]
    assert found.labels.tolist() == [1, 1, 2]


def test_clusters_retire_only_when_idle_no_concept_and_room_is_needed() -> None:
    idle = torch.tensor([5, 9, 0, 6])
    assert clusters.retired(idle, [1], clusters=4, limit=4) == [0, 3]
    assert clusters.retired(idle, [1], clusters=4, limit=16) == []
