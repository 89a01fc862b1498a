"""Which clusters are intermediate concepts (Algorithm 1), with the boundary points that keep concepts apart.

Reference: AdapNet, section 3.1 and Algorithm 1; boundary points by reverse nearest neighbours as in BORDER (Xia et
al.).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.pruning.adapnet.clusters import Clustering
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.tables import ROW_MIN, column_uniformity

BORDER_FRACTION = 0.2  # of a concept's maps, that form its border (algorithm 1)
BORDER_RATIO = 0.75  # distance from it that makes another concept

FEWEST = 5  # counts of a candidate, and points of a neighbour, below which nothing can be said


@dataclass(frozen=True)
class Verdict:
    """What Algorithm 1 said of one cluster, and the numbers that decided it; None where it did not come to that."""

    cluster: int
    accepted: bool
    p_value: float
    nearest: int | None = None
    to_nearest: float | None = None
    to_border: float | None = None
    border_radius: float | None = None


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
) -> list[Verdict]:
    """Judge every cluster that is no concept yet, in column order; those accepted join before the next is judged.

    A cluster is accepted when filters are unequally active on it (p-value below `beta`) and its centre lies outside the
    nearest concept: farther from that concept's boundary points than `border_ratio` of what the concept's own centre
    is, and farther from the centre than the boundary. The last clause is ours: without it a duplicate could pass.
    """
    concepts = list(concepts)
    rows = reliable_rows(table, boundaries, ROW_MIN)
    p_values = column_uniformity(table, rows, settings.evidence).tolist()
    totals = table.sum(0).tolist()
    verdicts = []
    for candidate in range(table.shape[1]):
        if candidate in concepts or totals[candidate] < FEWEST:
            continue
        verdict = _judge(candidate, p_values[candidate], concepts, found, beta, settings)
        if verdict.accepted:
            concepts.append(candidate)
        verdicts.append(verdict)
    return verdicts


def _judge(
    candidate: int, p_value: float, concepts: list[int], found: Clustering, beta: float, settings: AdapNetSettings
) -> Verdict:
    if not p_value < beta:  # NaN, which says nothing, is refused too
        return Verdict(candidate, False, p_value)
    if not concepts:
        return Verdict(candidate, True, p_value)
    centre = found.centres[candidate]
    distances = (found.centres[concepts] - centre).norm(dim=1)
    nearest = concepts[int(distances.argmin())]
    to_nearest = float(distances.min())
    members = found.points[found.labels == nearest]
    if len(members) < FEWEST:
        return Verdict(candidate, True, p_value, nearest, to_nearest)
    border = members[boundary_points(members, BORDER_FRACTION)]
    to_border = float((border - centre).norm(dim=1).min())
    radius = float((border - found.centres[nearest]).norm(dim=1).min())
    accepted = to_border > BORDER_RATIO * radius and to_nearest > radius
    return Verdict(candidate, accepted, p_value, nearest, to_nearest, to_border, radius)


def useless(table: Tensor, concepts: list[int], boundaries: int, beta: float, settings: AdapNetSettings) -> list[int]:
    """The concepts on which filters have become equally active: dropped at the end of an epoch, their columns stay.

    Reference: section 3, the end of each epoch.
    """
    rows = reliable_rows(table, boundaries, ROW_MIN)
    p_values = column_uniformity(table, rows, settings.evidence).tolist()
    return [q for q in concepts if p_values[q] > beta]
