"""AdapNet's tables of a group: how often each filter's maps fell into each cluster, and the filters' distributions.

`table` is the paper's RFMDist (filters, clusters); the columns listed in `concepts` are its FMDist. Double precision,
on the host. Edits return new tables, so that rows always match the filters and columns the clusters.
"""

import torch
from torch import Tensor

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
