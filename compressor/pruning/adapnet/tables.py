"""AdapNet's tables of a group, and which of its clusters are intermediate concepts (Algorithm 1).

`table` is the paper's RFMDist (filters, clusters): how often each filter's maps fell into each cluster; the columns
listed in `concepts` are its FMDist. Double precision, on the host. Edits return new tables, so that rows always match
the filters and columns the clusters.

Reference: AdapNet, section 3.1 and Algorithm 1; the boundary points that keep concepts apart by reverse nearest
neighbours as in BORDER (Xia et al.).
"""

import math

import torch
from torch import Tensor

from compressor.pruning.adapnet.clusters import Clustering
from compressor.pruning.adapnet.settings import AdapNetSettings

ROW_MIN = 40  # maps seen before a filter is judged


def cluster_shares(table: Tensor) -> Tensor:
    """Each filter's distribution over all clusters; a row without counts stays zero."""
    return table / table.sum(1, keepdim=True).clamp(min=1e-12)


def concept_shares(table: Tensor, concepts: list[int]) -> Tensor:
    """Each filter's distribution over the concepts (filters, concepts); a row without counts there stays zero.

    Filters weigh the same; columns are normalised (equation 1), so that one very common concept does not make every
    filter look specialised; then each row is made a distribution.
    """
    shares = cluster_shares(table[:, concepts])
    shares = shares / shares.sum(0, keepdim=True).clamp(min=1e-12)
    return shares / shares.sum(1, keepdim=True).clamp(min=1e-12)


def uniformity(shares: Tensor, strength: float) -> Tensor:
    """The chi-square p-value that each row of `shares` (rows, cells) is uniform, as if seen `strength` times.

    1 for equal cells, near 0 for unequal ones, NaN (which passes no comparison) for a row of zeros or of fewer than two
    cells, which say nothing. The paper compares "chi-square" with a falling threshold such that uniform means above
    it: that holds for the p-value. The number of observations is fixed, since thousands of counts would reject the
    slightest ripple.
    """
    cells = shares.shape[1]
    if cells < 2:
        return torch.full_like(shares[:, :1].sum(1), torch.nan)
    expected = strength * shares.mean(1, keepdim=True)
    statistic = ((strength * shares - expected).square() / expected.clamp(min=1e-12)).sum(1)
    degrees = torch.full_like(statistic, (cells - 1) / 2)
    return torch.where(expected[:, 0] > 0, torch.special.gammaincc(degrees, statistic / 2), torch.nan)


def row_uniformity(table: Tensor, concepts: list[int], strength: float) -> Tensor:
    """p-value (filters,) that a filter is equally active on all concepts. Reference: Algorithm 2."""
    return uniformity(concept_shares(table, concepts), strength)


def column_uniformity(table: Tensor, rows: Tensor, strength: float) -> Tensor:
    """p-value (clusters,) that a cluster is equally fed by all filters; `rows` masks those that have data enough.

    Reference: Algorithm 1.
    """
    return uniformity(cluster_shares(table)[rows].T, strength)


def count_labels(rows: Tensor, labels: Tensor, filters: int, clusters: int) -> Tensor:
    """How many of each filter's maps have each label (filters, clusters): map i is of filter `rows[i]`."""
    counts = torch.bincount(rows * clusters + labels, minlength=filters * clusters)
    return counts.view(filters, clusters).double()


def add_columns(table: Tensor, clusters: int) -> Tensor:
    """The table with empty columns appended until it has `clusters`."""
    return torch.cat([table, table.new_zeros(len(table), clusters - table.shape[1])], dim=1)


def drop_columns(table: Tensor, concepts: list[int], dropped: list[int]) -> tuple[Tensor, list[int]]:
    """Table and concepts after the given clusters are forgotten; they must not be concepts."""
    kept = [q for q in range(table.shape[1]) if q not in dropped]
    return table[:, kept], [kept.index(q) for q in concepts]


def merge_rows(table: Tensor, keep: int, drop: int) -> Tensor:
    """The table after two filters became one: the mean of their rows at `keep`, none at `drop` (paper, section 3)."""
    table = table.clone()
    table[keep] = (table[keep] + table[drop]) / 2
    return torch.cat([table[:drop], table[drop + 1 :]])


def insert_row(table: Tensor, position: int) -> Tensor:
    """The table with an empty row at `position` for a new filter."""
    return torch.cat([table[:position], table.new_zeros(1, table.shape[1]), table[position:]])


BORDER_FRACTION = 0.2  # of a concept's maps, that form its border (algorithm 1)
BORDER_RATIO = 0.75  # distance from it that makes another concept

FEWEST = 5  # counts of a candidate, and points of a neighbour, below which nothing can be said


def boundary_points(points: Tensor, fraction: float) -> Tensor:
    """Indices of the `fraction` of `points` (n, d) that occur least among the others' nearest neighbours.

    The number of neighbours is the root of n. Ties go to the lower index.
    """
    count = len(points)
    neighbours = min(max(1, math.isqrt(count)), count - 1)
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(math.inf)
    listed = distances.topk(neighbours, dim=1, largest=False).indices
    occurrences = torch.bincount(listed.flatten(), minlength=count)
    return occurrences.argsort(stable=True)[: max(1, int(fraction * count))]


def reliable_rows(table: Tensor, boundaries: int, row_min: int) -> Tensor:
    """Mask of filters with data enough for the column test; at a group's first two boundaries any count is enough."""
    return table.sum(1) >= (1 if boundaries < 2 else row_min)


def detect(
    table: Tensor, concepts: list[int], found: Clustering, boundaries: int, beta: float, settings: AdapNetSettings
) -> list[int]:
    """The clusters that become concepts, judged in column order; those accepted join before the next is judged.

    A cluster is accepted when filters are unequally active on it (p-value below `beta`) and its centre lies outside the
    nearest concept: farther from that concept's boundary points than `border_ratio` of what the concept's own centre
    is, and farther from the centre than the boundary. The last clause is ours: without it a duplicate could pass.
    """
    rows = reliable_rows(table, boundaries, ROW_MIN)
    p_values = column_uniformity(table, rows, settings.evidence).tolist()
    totals = table.sum(0).tolist()
    accepted: list[int] = []
    for candidate in range(table.shape[1]):
        if candidate in concepts or totals[candidate] < FEWEST:
            continue
        # NaN, which says nothing, is refused too.
        if p_values[candidate] < beta and _is_apart(candidate, [*concepts, *accepted], found):
            accepted.append(candidate)
    return accepted


def _is_apart(candidate: int, concepts: list[int], found: Clustering) -> bool:
    """Whether a cluster's centre lies outside the nearest concept; a concept of few points has no outside."""
    if not concepts:
        return True
    centre = found.centres[candidate]
    distances = (found.centres[concepts] - centre).norm(dim=1)
    nearest, to_nearest = concepts[int(distances.argmin())], float(distances.min())
    members = found.points[found.labels == nearest]
    if len(members) < FEWEST:
        return True
    border = members[boundary_points(members, BORDER_FRACTION)]
    to_border = float((border - centre).norm(dim=1).min())
    radius = float((border - found.centres[nearest]).norm(dim=1).min())
    return to_border > BORDER_RATIO * radius and to_nearest > radius


def useless(table: Tensor, concepts: list[int], boundaries: int, beta: float, settings: AdapNetSettings) -> list[int]:
    """The concepts on which filters have become equally active: dropped at the end of an epoch, their columns stay.

    Reference: section 3, the end of each epoch.
    """
    rows = reliable_rows(table, boundaries, ROW_MIN)
    p_values = column_uniformity(table, rows, settings.evidence).tolist()
    return [q for q in concepts if p_values[q] > beta]
