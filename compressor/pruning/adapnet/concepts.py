"""Which clusters are intermediate concepts (Algorithm 1), with the boundary points that keep concepts apart.

Reference: AdapNet, section 3.1 and Algorithm 1; boundary points by reverse nearest neighbours as in BORDER (Xia et
al.).
"""

import math

import torch
from torch import Tensor

from compressor.pruning.adapnet.clusters import Clustering
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.tables import ROW_MIN, column_uniformity

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
