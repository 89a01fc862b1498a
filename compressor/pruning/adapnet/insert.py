"""Whether a layer needs another filter (Algorithm 4), and what it looks like: a correlative of a filter it has.

Reference: AdapNet, section 3.3 and Algorithm 4; the four correlations are those of Wang et al., "Learning Correlative
Filters", as in their published code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVE_SHARE, ACTIVE_MASS = 0.3, 0.7  # of the concepts, that may hold so much of a filter's activity (algorithm 4)
FEWEST_CONCEPTS = 4  # the smallest number of which one is less than 30 %
SHRINK = 1.5


@dataclass(frozen=True)
class Need:
    """Algorithm 4's demand of a layer: P1 and P2 of every judged filter (NaN for others), and their sums."""

    p1: Tensor
    p2: Tensor
    sum_p1: float
    sum_p2: float

    def masters(self) -> list[int]:
        """Positions of the filters that demand a new one; empty when the layer as a whole does not."""
        if self.sum_p1 <= 0 and self.sum_p2 <= 0:
            return []
        return torch.nonzero((self.p1 > 0) | (self.p2 > 0)).flatten().tolist()


def need(shares: Tensor, judged: Tensor) -> Need:
    """How far the filters are from having 70 % of their activity on 30 % of the concepts.

    Shapes: shares (filters, concepts), judged (filters,). A row's largest drop, in falling order, divides active from
    inactive concepts; P1 and P2 are positive where too many are active and where these hold too little, in -1..1. Below
    four concepts nothing is needed, since one concept would already be more than 30 %.
    """
    filters, concepts = shares.shape
    nothing = torch.full((filters,), torch.nan, dtype=shares.dtype)
    if concepts < FEWEST_CONCEPTS or not bool(judged.any()):
        return Need(nothing, nothing, 0.0, 0.0)
    ordered = shares.sort(dim=1, descending=True).values
    active = (ordered[:, :-1] - ordered[:, 1:]).argmax(1) + 1
    mass = ordered.cumsum(1).gather(1, active[:, None] - 1)[:, 0]
    share, hold = ACTIVE_SHARE, ACTIVE_MASS
    p1, p2 = active / concepts - share, hold - mass
    p1 = torch.where(p1 > 0, p1 / (1 - share), p1 / share)
    p2 = torch.where(p2 > 0, p2 / hold, p2 / (1 - hold))
    p1, p2 = torch.where(judged, p1, torch.nan), torch.where(judged, p2, torch.nan)
    return Need(p1, p2, float(p1.nansum()), float(p2.nansum()))


def inverse(kernel: Tensor, generator: torch.Generator) -> Tensor:
    """The negative of the kernel."""
    return -kernel


def rotary(kernel: Tensor, generator: torch.Generator) -> Tensor:
    """The kernel (channels, height, width) turned by 90 degrees, clockwise; itself when it is not square."""
    return torch.rot90(kernel, -1, (-2, -1)) if kernel.shape[-2] == kernel.shape[-1] else kernel


def scaling(kernel: Tensor, generator: torch.Generator) -> Tensor:
    """The kernel (channels, height, width) shrunk towards its centre by 1.5, zeros around it, with its old norm."""
    theta = torch.tensor([[[SHRINK, 0.0, 0.0], [0.0, SHRINK, 0.0]]], dtype=kernel.dtype, device=kernel.device)
    grid = F.affine_grid(theta, [1, *kernel.shape], align_corners=False)
    return _with_norm_of(kernel, F.grid_sample(kernel[None], grid, align_corners=False)[0])


def translational(kernel: Tensor, generator: torch.Generator) -> Tensor:
    """The kernel (channels, height, width) shifted by half its size in one of four directions, with its old norm."""
    direction = int(torch.randint(4, (), generator=generator, device=generator.device))
    dim, sign = (-2, -1)[direction // 2], (1, -1)[direction % 2]
    shift = max(1, kernel.shape[dim] // 2)
    moved = kernel.roll(sign * shift, dim)
    edge = slice(0, shift) if sign > 0 else slice(kernel.shape[dim] - shift, None)
    moved.movedim(dim, 0)[edge] = 0
    return _with_norm_of(kernel, moved)


def _with_norm_of(kernel: Tensor, changed: Tensor) -> Tensor:
    norm = changed.norm()
    return changed * (kernel.norm() / norm) if float(norm) > 0 else kernel


# By the quarter of the network the layer lies in, first to last.
CORRELATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "inverse": inverse,
    "rotary": rotary,
    "scaling": scaling,
    "translational": translational,
}


def correlation(position: int, layers: int) -> str:
    """The kind of correlation for the layer at `position` (from 0) of so many that change."""
    return list(CORRELATIONS)[4 * position // layers]


def correlated(kernel: Tensor, kind: str, generator: torch.Generator) -> tuple[Tensor, str]:
    """A new kernel (channels, height, width) from the master's, and the kind it became.

    The inverse stands in where the correlation gives the master itself, as for 1x1 kernels: a twin would learn nothing.
    """
    made = CORRELATIONS[kind](kernel, generator)
    if torch.equal(made, kernel):
        return -kernel, "inverse"
    return made, kind
