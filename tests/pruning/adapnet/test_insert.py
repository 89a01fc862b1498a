"""Algorithm 4 on matrices made by hand, and the four correlations on known kernels."""

import math

import pytest
import torch

from compressor.pruning.adapnet import insert
from compressor.pruning.adapnet.settings import AdapNetSettings

SETTINGS = AdapNetSettings()
KERNEL = torch.arange(1.0, 10.0).view(1, 3, 3)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def need_of(rows: torch.Tensor, judged: list[bool] | None = None) -> insert.Need:
    return insert.need(rows.double(), torch.tensor(judged or [True] * len(rows)))


def test_known_row_gives_the_known_demand() -> None:
    need = need_of(torch.tensor([[0.1, 0.7, 0.1, 0.1]], dtype=torch.float64))
    assert need.sum_p1 == pytest.approx(-1 / 6) and need.sum_p2 == pytest.approx(0.0, abs=1e-12)


def test_a_diagonal_table_needs_nothing() -> None:
    need = need_of(torch.eye(6))
    assert need.p1.tolist() == pytest.approx([(1 / 6 - 0.3) / 0.3] * 6)
    assert need.p2.tolist() == pytest.approx([-1.0] * 6)
    assert need.masters() == []


def test_a_uniform_table_needs_a_filter() -> None:
    need = need_of(torch.full((5, 4), 0.25))
    assert need.p2.tolist() == pytest.approx([0.45 / 0.7] * 5) and need.masters() == [0, 1, 2, 3, 4]


def test_a_layer_in_balance_asks_for_nothing() -> None:
    asking, resting = torch.tensor([0.5, -0.5]), torch.tensor([0.0, -0.1])
    assert insert.Need(asking, resting, 0.0, 0.0).masters() == [] == insert.Need(resting, asking, 0.0, 0.0).masters()
    assert insert.Need(asking, resting, 0.1, 0.0).masters() == [0] == insert.Need(resting, asking, 0.0, 0.1).masters()


def test_three_concepts_never_ask() -> None:
    assert need_of(torch.full((5, 3), 1 / 3)).masters() == []


def slow_need(row: list[float]) -> tuple[float, float]:
    ordered = sorted(row, reverse=True)
    drops = [ordered[i] - ordered[i + 1] for i in range(len(row) - 1)]
    active = ordered[: drops.index(max(drops)) + 1]
    p1, p2 = len(active) / len(row) - 0.3, 0.7 - sum(active)
    return p1 / (0.7 if p1 > 0 else 0.3), p2 / (0.7 if p2 > 0 else 0.3)


def test_demand_equals_one_filter_at_a_time(generator: torch.Generator) -> None:
    rows = torch.rand(9, 7, generator=generator, dtype=torch.float64) ** 3
    rows = rows / rows.sum(1, keepdim=True)
    judged = [i != 4 for i in range(9)]
    need = need_of(rows, judged)
    expected = [slow_need(row) for i, row in enumerate(rows.tolist()) if judged[i]]
    assert need.sum_p1 == pytest.approx(sum(p1 for p1, _ in expected))
    assert need.sum_p2 == pytest.approx(sum(p2 for _, p2 in expected))
    assert math.isnan(need.p1[4]) and 4 not in need.masters()


def test_inverse_and_rotation_of_a_known_kernel(generator: torch.Generator) -> None:
    assert torch.equal(insert.inverse(KERNEL, generator), -KERNEL)
    assert insert.rotary(KERNEL, generator)[0].tolist() == [[7, 4, 1], [8, 5, 2], [9, 6, 3]]


def slow_scaling(kernel: torch.Tensor) -> torch.Tensor:
    size = kernel.shape[-1]
    centre = (size - 1) / 2

    def at(plane: torch.Tensor, y: int, x: int) -> float:
        return float(plane[y, x]) if 0 <= y < size and 0 <= x < size else 0.0

    made = torch.zeros_like(kernel)
    for c, plane in enumerate(kernel):
        for i in range(size):
            for j in range(size):
                y, x = centre + 1.5 * (i - centre), centre + 1.5 * (j - centre)
                top, left = math.floor(y), math.floor(x)
                for dy in (0, 1):
                    for dx in (0, 1):
                        share = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                        made[c, i, j] += share * at(plane, top + dy, left + dx)
    return made * kernel.norm() / made.norm()


@pytest.mark.parametrize("size", [3, 5, 7])
def test_scaling_samples_the_kernel_farther_from_its_centre(generator: torch.Generator, size: int) -> None:
    kernel = torch.randn(4, size, size, generator=generator)
    torch.testing.assert_close(insert.scaling(kernel, generator), slow_scaling(kernel))


def test_translation_shifts_by_half_the_kernel_and_keeps_the_norm(generator: torch.Generator) -> None:
    shifted = {
        "down": torch.tensor([[0.0, 0, 0], [1, 2, 3], [4, 5, 6]]),
        "up": torch.tensor([[4.0, 5, 6], [7, 8, 9], [0, 0, 0]]),
        "right": torch.tensor([[0.0, 1, 2], [0, 4, 5], [0, 7, 8]]),
        "left": torch.tensor([[2.0, 3, 0], [5, 6, 0], [8, 9, 0]]),
    }
    seen = set()
    for _ in range(40):
        made = insert.translational(KERNEL, generator)[0]
        assert float(made.norm()) == pytest.approx(float(KERNEL.norm()))
        seen |= {way for way, plain in shifted.items() if torch.allclose(made / made.norm(), plain / plain.norm())}
    assert seen == set(shifted)


def test_correlation_follows_the_quarter_of_the_network() -> None:
    kinds = [insert.correlation(position, 8) for position in range(8)]
    assert kinds == [kind for kind in ("inverse", "rotary", "scaling", "translational") for _ in range(2)]
    assert insert.correlation(0, 1) == "inverse"


@pytest.mark.parametrize("kind", list(insert.CORRELATIONS))
def test_kernels_that_a_correlation_leaves_as_they_are_get_the_inverse(kind: str, generator: torch.Generator) -> None:
    point = torch.randn(6, 1, 1, generator=generator)
    made, became = insert.correlated(point, kind, generator)
    assert became == "inverse" and torch.equal(made, -point)


@pytest.mark.parametrize("kind", list(insert.CORRELATIONS))
def test_correlated_kernels_have_the_masters_shape_and_norm(kind: str, generator: torch.Generator) -> None:
    for shape in [(6, 3, 3), (6, 1, 5), (6, 5, 3), (6, 4, 4)]:
        kernel = torch.randn(shape, generator=generator)
        made, _ = insert.correlated(kernel, kind, generator)
        assert made.shape == kernel.shape and not torch.equal(made, kernel)
        torch.testing.assert_close(made.norm(), kernel.norm())
