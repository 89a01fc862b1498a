"""Least squares over rows that are never all there: sums of products, and their solution with a pull."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean square of a layer's inputs
_RIDGES = (1e-6, RIDGE, 1e-2, 1e-1)
_SWEEPS = 2  # in which targets follow what an activation cuts off
_LARGE = 2000  # unknowns, from which on one ridge has to do
_KEPT_BYTES = 1 << 29  # of rows that are kept for further sweeps
_TOGETHER = 4096  # rows that are multiplied at once: to add a product up costs as much as that of 700 rows
_VALUES_TOGETHER = 1 << 23  # of them at most
_BLOCK = 512  # columns of a symmetric product that are made at once


@dataclass(frozen=True)
class Level:
    """What becomes of outputs behind the layer: `values + scale * (output - target)`, cut off at `low` and `high`."""

    values: Tensor  # (groups, rows, outputs), in the dense network
    scale: Tensor  # (groups, 1, outputs)
    low: float
    high: float


@dataclass(frozen=True)
class Rows:
    """Inputs (groups, rows, unknowns), targets (groups, rows, outputs), and where an activation follows its level."""

    x: Tensor
    y: Tensor
    level: Level | None = None

    def part(self, chosen: Tensor) -> "Rows":
        level = self.level
        if level is not None:
            level = Level(level.values[:, chosen], level.scale, level.low, level.high)
        return Rows(self.x[:, chosen], self.y[:, chosen], level)

    def follows_as(self, other: "Rows") -> bool:
        """Whether an activation follows both alike, or none."""
        mine, theirs = self.level, other.level
        if mine is None or theirs is None:
            return mine is theirs
        same = (mine.low, mine.high) == (theirs.low, theirs.high)
        return same and torch.equal(mine.scale, theirs.scale)

    def made(self, matrix: Tensor) -> Tensor:
        """Outputs (groups, rows, outputs) of a matrix (groups, unknowns, outputs), which may have a constant behind."""
        matrix, unknowns = matrix.to(self.x), self.x.shape[2]
        made = self.x @ matrix[:, :unknowns]
        return made if matrix.shape[1] == unknowns else made.add_(matrix[:, unknowns:])

    def summed(self, y: Tensor, constant: bool) -> Tensor:
        """X'Y (groups, unknowns, outputs), with a constant of 1 behind the unknowns if there is one."""
        sums = exactly(self.x.mT @ y)
        return torch.cat([sums, exactly(y.sum(1, keepdim=True))], 1) if constant else sums

    def errors(self, matrix: Tensor) -> Tensor:
        """(groups, outputs): sums of squared errors, behind the activation."""
        error, level = self.made(matrix).sub_(self.y), self.level
        if level is not None:
            error = error.mul_(level.scale).add_(level.values).clamp_(level.low, level.high).sub_(self.behind())
        return exactly(error.square_().sum(1))

    def reached(self, matrix: Tensor) -> Tensor:
        """Targets that the activation tells no difference to: where it cuts off, what is made may lie further out."""
        level = self.level
        assert level is not None
        moved = self.made(matrix).sub_(self.y).mul_(level.scale)
        free = torch.where(level.values <= level.low, torch.minimum(moved, level.low - level.values), 0)
        if level.high < torch.inf:
            free = torch.where(level.values >= level.high, torch.maximum(moved, level.high - level.values), free)
        return free.mul_(torch.where(level.scale == 0, 0, 1 / level.scale)).add_(self.y)

    def behind(self) -> Tensor:
        """(groups, rows, outputs): the targets, behind the activation."""
        level = self.level
        return self.y if level is None else level.values.clamp(level.low, level.high)


@dataclass(frozen=True)
class Solution:
    """A matrix (groups, unknowns, outputs), and the squares of its and the earlier one's errors: (groups, outputs)."""

    matrix: Tensor
    before: Tensor
    after: Tensor


@dataclass
class Gram:
    """Sums over rows, each group by itself; with `constant` outputs may be shifted, and a last input is 1 everywhere.

    Rows that are held back are kept as they are, and all others, too, where an activation follows and there is room.
    """

    constant: bool
    held: list[Rows] = field(default_factory=list)
    kept: list[Rows] | None = field(default_factory=list)  # None: too many
    _inner: Tensor | None = None  # what was added since it was read is in the lower triangle alone
    _cross: Tensor | None = None
    _waiting: list[Rows] = field(default_factory=list)
    _bytes: int = 0

    @property
    def inner(self) -> Tensor:
        """X'X: (groups, unknowns, unknowns)."""
        self._sum_waiting()
        assert self._inner is not None
        self._inner = self._inner.tril() + self._inner.tril(-1).mT
        return self._inner

    @property
    def cross(self) -> Tensor:
        """X'Y: (groups, unknowns, outputs)."""
        self._sum_waiting()
        assert self._cross is not None
        return self._cross

    def add(self, rows: Rows, held: Tensor | None = None) -> None:
        """Add rows; those that `held` marks are held back."""
        x, y = (part if part.dtype == torch.float64 else part.float() for part in (rows.x, rows.y))
        rows = Rows(x.contiguous(), y.contiguous(), rows.level)
        if held is not None:
            self.held.append(rows.part(held))
            rows = rows.part(~held)
        self._bytes += x.nbytes + 2 * y.nbytes
        if rows.level is None or self._bytes > _KEPT_BYTES:
            self.kept = None
        self._waiting.append(rows)
        if self._count() >= _TOGETHER or self._count() * x[:, 0].numel() >= _VALUES_TOGETHER:
            self._sum_waiting()

    def _count(self) -> int:
        return sum(rows.x.shape[1] for rows in self._waiting)

    def _sum_waiting(self) -> None:
        together, self._waiting = joined(self._waiting), []
        for rows in together:
            self._sum(rows)
        if self.kept is not None:
            self.kept.extend(together)

    def _sum(self, rows: Rows) -> None:
        x, unknowns = rows.x, rows.x.shape[2]
        if self._inner is None or self._cross is None:
            size = unknowns + self.constant
            zeros = exactly(x.new_zeros(len(x), 1, 1))
            self._inner = zeros.new_zeros(len(x), size, size)
            self._cross = zeros.new_zeros(len(x), size, rows.y.shape[2])
        for start in range(0, unknowns, _BLOCK):
            part = x[:, :, start : start + _BLOCK]
            self._inner[:, start:unknowns, start : start + part.shape[2]] += x[:, :, start:].mT @ part
        self._cross += rows.summed(rows.y, self.constant)
        if self.constant:
            self._inner[:, unknowns, :unknowns] += x.sum(1)
            self._inner[:, unknowns, unknowns] += x.shape[1]

    def best(self, before: Tensor) -> Solution:
        """What fits the held-back rows best, output by output, solved with these rows as well.

        Candidates are `before`, solutions with a pull towards it, each stronger than the last, and the best of these
        with targets that the activation tells no difference to.
        """
        self.held = joined(self.held)
        solvers, first = self._solvers(before), self._as_cut(before)
        fits = [*first, *(solve(self.cross) for solve in solvers)]
        chosen, errors = choose(fits, self.held)
        pulls = errors[len(first) :].argmin(0)
        swept = self._swept(solvers, pulls, _gathered(fits[len(first) :], pulls))
        if swept:
            errors = torch.cat([errors, choose(swept, self.held)[1]])
            chosen = errors.argmin(0)
        for rows in self.held:
            self._sum(rows)
        if self.kept is not None:
            self.kept.extend(self.held)
        solvers = self._solvers(before)
        solved = _solved(solvers, pulls, self.cross)
        found = [*self._as_cut(before), solved, *self._swept(solvers, pulls, solved)]
        of_found = torch.where(chosen < len(first), chosen, (chosen - len(solvers) + 1).clamp(min=len(first)))
        return Solution(_gathered(found, of_found), errors[0], errors.gather(0, chosen[None])[0])

    def _solvers(self, before: Tensor) -> list["Ridge"]:
        ridges, inner = _RIDGES if before.shape[1] < _LARGE else (RIDGE,), self.inner
        return [Ridge(inner, before, ridge, self.constant) for ridge in ridges]

    def _as_cut(self, before: Tensor) -> list[Tensor]:
        """The matrix as it was, and where outputs may be shifted also with its mean error taken away."""
        if not self.constant:
            return [before]
        assert self._inner is not None
        shifted, sums = before.clone(), self._inner[:, -1:]
        shifted[:, -1] += (self.cross[:, -1] - (sums @ before)[:, 0]) / sums[:, :, -1].clamp(min=1)
        return [before, shifted]

    def _swept(self, solvers: Sequence["Ridge"], pulls: Tensor, matrix: Tensor) -> list[Tensor]:
        """Solutions whose targets follow the last one where the activation cuts off; each output has its own pull."""
        found: list[Tensor] = []
        for _ in range(_SWEEPS if self.kept else 0):
            cross = sum(rows.summed(rows.reached(matrix), self.constant) for rows in self.kept or ())
            assert isinstance(cross, Tensor)
            matrix = _solved(solvers, pulls, cross)
            found.append(matrix)
        return found


def joined(rows: Sequence[Rows]) -> list[Rows]:
    """Rows that an activation follows alike as one."""
    alike: list[list[Rows]] = []
    for each in rows:
        place = next((place for place in alike if place[0].follows_as(each)), None)
        if place is None:
            alike.append([each])
        else:
            place.append(each)
    return [_joined(each) for each in alike]


def _joined(rows: Sequence[Rows]) -> Rows:
    if len(rows) == 1:
        return rows[0]
    level = rows[0].level
    if level is not None:
        values = torch.cat([each.level.values for each in rows if each.level is not None], 1)
        level = Level(values, level.scale, level.low, level.high)
    return Rows(torch.cat([each.x for each in rows], 1), torch.cat([each.y for each in rows], 1), level)


def _gathered(matrices: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """One matrix (groups, unknowns, outputs), each output out of the one that is chosen (groups, outputs) for it."""
    stacked = torch.stack(list(matrices))
    return stacked.gather(0, chosen[None, :, None].expand(-1, -1, stacked.shape[2], -1))[0]


def _solved(solvers: Sequence["Ridge"], pulls: Tensor, cross: Tensor) -> Tensor:
    """Each output's solution with the pull that is chosen (groups, outputs) for it."""
    if len(cross) > 1:
        return _gathered([solve(cross) for solve in solvers], pulls)
    found = torch.empty_like(cross)
    for number, solve in enumerate(solvers):
        own = torch.nonzero(pulls[0] == number).flatten()
        found[:, :, own] = solve(cross[:, :, own], own)
    return found


def pulled(diagonal: Tensor, ridge: float) -> Tensor:
    """(..., 1): a share of the mean of a diagonal, above zero."""
    return (ridge * diagonal.mean(-1, keepdim=True)).clamp(min=1e-30)


def exactly(product: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return product if product.device.type == "mps" else product.double()


def choose(candidates: Sequence[Tensor], rows: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """Of matrices (groups, unknowns, outputs) the number of the best for each output, and all their squared errors."""
    errors = torch.stack([torch.stack([part.errors(matrix) for part in rows]).sum(0) for matrix in candidates])
    errors = errors.nan_to_num(torch.inf, torch.inf)
    return errors.argmin(0), errors


class Ridge:
    """Minimises |X W - Y|^2 + c |W - before|^2 for any Y, with c = `ridge` of the mean of the diagonal of X'X.

    `inner` is X'X (..., unknowns, unknowns). With `constant` the last unknown is not penalised.
    """

    def __init__(self, inner: Tensor, before: Tensor, ridge: float, constant: bool = False) -> None:
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        free = diagonal[..., :-1] if constant else diagonal
        pull = pulled(free, ridge).expand_as(diagonal).clone()
        if constant:
            pull[..., -1] = 0
        self.factor, self.failed = torch.linalg.cholesky_ex(inner + torch.diag_embed(pull))
        self.added = pull[..., None] * before

    def __call__(self, cross: Tensor, outputs: Tensor | None = None) -> Tensor:
        """The solution for X'Y (..., unknowns, outputs), of all outputs or of some; not numbers where there is none."""
        added = self.added if outputs is None else self.added[..., outputs]
        solved = torch.cholesky_solve(cross + added, self.factor)
        return solved.masked_fill((self.failed > 0)[..., None, None], torch.nan)
