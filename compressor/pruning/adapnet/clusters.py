"""Clusters of a group's feature maps that live on from period to period, in spectral spaces that do not.

The paper clusters incrementally in spectral clustering's eigenspace (section 3.1). That space is new in every period,
so a centre is carried over by exemplars: a few maps of each cluster that join every later dictionary and say where
the cluster lies now. All of this is small and runs on the host in double precision, apart from `assign`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 32  # coefficients that place a map outside the sample
K_MIN = 4  # clusters of a layer, at least
EXEMPLARS = 8  # maps that carry a cluster into the next period
RETIRE_AFTER, RETIRE_SHARE = 5, 0.01  # periods with fewer of their maps than this share, then a cluster may go
PER_CLUSTER = 8  # maps that a dictionary needs for each cluster it forms


@dataclass(frozen=True)
class Clustering:
    """The clusters of one dictionary of n maps in a space of `dimensions`.

    points: (n, dimensions), rows of length 1.  centres: (clusters, dimensions).  labels: (n,), the cluster of each map.
    """

    points: Tensor
    centres: Tensor
    labels: Tensor


def count_limit(classes: int | None, filters: int, dictionary: int) -> int:
    """The most clusters that a dictionary of that many maps may form: twice the classes, or where there are none as
    many as filters, within 16 to 32.
    """
    return min(max(filters if classes is None else 2 * classes, 16), 32, dictionary // PER_CLUSTER)


def eigengap(values: Tensor, low: int, high: int) -> int:
    """The number of clusters, `low` to `high`, after which the Laplacian's eigenvalues rise most.

    `values` are the eigenvalues of the normalised affinity, falling; the Laplacian's are one minus these.
    """
    rises = values[:-1] - values[1:]
    return low + int(rises[low - 1 : high].argmax())


def embed(vectors: Tensor, dimensions: int) -> Tensor:
    """Points (n, dimensions) of length 1 from eigenvectors (n, at least dimensions)."""
    return torch.nn.functional.normalize(vectors[:, :dimensions], dim=1)


def transported(points: Tensor, owners: Tensor, clusters: int) -> Tensor:
    """Where the old clusters' centres lie among the new points: the direction of the mean of their exemplars.

    The exemplars are the first points; `owners` says which cluster each belongs to.
    """
    sums = points.new_zeros(clusters, points.shape[1]).index_add_(0, owners, points[: len(owners)])
    return torch.nn.functional.normalize(sums, dim=1)


def seed(points: Tensor, centres: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centres grown to `clusters` by k-means++ draws from the points, given the centres that exist."""
    while centres.shape[0] < clusters:
        weights = torch.ones(len(points), dtype=points.dtype)
        if centres.shape[0]:
            weights = torch.cdist(points, centres).square().amin(1)
        if float(weights.sum()) <= 0.0:  # every point is a centre already
            weights = torch.ones(len(points), dtype=points.dtype)
        drawn = torch.multinomial(weights, 1, generator=generator)
        centres = torch.cat([centres, points[drawn]])
    return centres


def cluster(points: Tensor, start: Tensor, weights: Tensor, iterations: int = 15) -> Clustering:
    """Incremental k-means: each old centre pulls with `weights` pseudo-points that lie where it started.

    Shapes: points (n, d), start (clusters, d), weights (clusters,), 0 for new clusters. A cluster without weight and
    points stays where it started.
    """
    centres = start
    labels = torch.cdist(points, centres).argmin(1)
    for _ in range(iterations):
        sums = (weights[:, None] * start).index_add(0, labels, points)
        sizes = weights + torch.bincount(labels, minlength=len(start))
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], start)
        closest = torch.cdist(points, centres).argmin(1)
        if torch.equal(closest, labels):
            break
        labels = closest
    return Clustering(points, centres, labels)


def without_empty(found: Clustering, old: int) -> Clustering:
    """The clustering without those of its new clusters (from index `old` on) that hold no point."""
    sizes = torch.bincount(found.labels, minlength=len(found.centres))
    keep = (sizes > 0) | (torch.arange(len(found.centres)) < old)
    position = keep.cumsum(0) - 1
    return Clustering(found.points, found.centres[keep], position[found.labels])


def nearest(found: Clustering, count: int) -> list[Tensor]:
    """For each cluster the indices of at most `count` of its points, nearest to its centre first."""
    distances = (found.points - found.centres[found.labels]).norm(dim=1)
    order = distances.argsort(stable=True)
    return [order[found.labels[order] == q][:count] for q in range(len(found.centres))]


def assign(latents: Tensor, dictionary: Tensor, inverse: Tensor, found: Clustering) -> Tensor:
    """The clusters (t,) of maps outside the dictionary, by self-expression.

    Shapes: latents (t, d), dictionary (n, d), inverse (n, n) from `self_expression`, all on one device. A map is
    expressed by the dictionary, placed at the mean of the points it is expressed by, and given to the nearest centre.
    This is how scalable subspace clustering treats maps out of the sample.
    """
    coefficients = ((latents @ dictionary.T) @ inverse).abs()
    taken = min(NEIGHBOURS, coefficients.shape[1])
    smallest = coefficients.topk(taken, dim=1).values[:, -1:]
    coefficients = coefficients * (coefficients >= smallest)
    points = found.points.to(latents.device, latents.dtype)
    centres = found.centres.to(latents.device, latents.dtype)
    placed = torch.nn.functional.normalize(coefficients @ points, dim=1)
    return torch.cdist(placed, centres).argmin(1)


def retired(idle: Tensor, concepts: list[int], clusters: int, limit: int) -> list[int]:
    """Clusters to forget: no maps for five periods, no concepts, and only once there is no room for new clusters."""
    if clusters < limit:
        return []
    return [q for q in torch.nonzero(idle >= RETIRE_AFTER).flatten().tolist() if q not in concepts]
