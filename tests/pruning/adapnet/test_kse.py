"""The KSE indicator against a loop over kernels."""

import math

import numpy as np
import pytest
import torch

from compressor.pruning.adapnet import kse


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def slow_indicator(weight: np.ndarray, k: int) -> list[float]:
    """Equation (4) with KSE's distances and normalisations, one kernel at a time."""
    readers, channels, _ = weight.shape
    entropies = []
    for c in range(channels):
        densities = []
        for n in range(readers):
            distances = sorted(np.linalg.norm(weight[n, c] - weight[m, c]) for m in range(readers) if m != n)
            densities.append(sum(distances[:k]))
        total = sum(densities)
        entropies.append(-sum(d / total * math.log2(d / total) for d in densities if d > 0))
    low, high = min(entropies), max(entropies)
    raw = [math.sqrt(1 / (1 + (e - low) / (high - low))) for e in entropies]
    return [(v - min(raw)) / (max(raw) - min(raw)) for v in raw]


@pytest.mark.parametrize(("readers", "elements"), [(12, 9), (4, 9), (2, 1), (7, 1)])
def test_indicator_equals_a_loop(generator: torch.Generator, readers: int, elements: int) -> None:
    weight = torch.randn(readers, 6, elements, generator=generator)
    if readers == 2:  # two kernels are equally far from each other: nothing is told apart
        assert kse.indicator(weight, generator, 5, 256).tolist() == [1.0] * 6
        return
    expected = slow_indicator(weight.double().numpy(), 5)
    np.testing.assert_allclose(kse.indicator(weight, generator, 5, 256), expected, atol=1e-4)


def test_chunks_over_channels_change_nothing(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(10, 9, 9, generator=generator)
    whole = kse.indicator(weight, generator, 5, 256)
    monkeypatch.setattr(kse, "PAIRS_AT_ONCE", 250)
    assert torch.equal(kse.indicator(weight, generator, 5, 256), whole)


def test_one_reader_and_equal_kernels_say_nothing(generator: torch.Generator) -> None:
    assert kse.indicator(torch.randn(1, 5, 9), generator, 5, 256).tolist() == [1.0] * 5
    weight = torch.randn(8, 5, 9, generator=generator)
    weight[:, 2] = 0.0
    values = kse.indicator(weight, generator, 5, 256)
    others = kse.indicator(weight[:, [0, 1, 3, 4]], generator, 5, 256)
    assert float(values[2]) == 1.0
    torch.testing.assert_close(values[[0, 1, 3, 4]], others)


def test_many_readers_are_sampled_by_the_generator_alone() -> None:
    weight = torch.randn(40, 6, 9, generator=torch.Generator().manual_seed(1))
    first, second, other = (kse.indicator(weight, torch.Generator().manual_seed(s), 5, 16) for s in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_several_readers_give_their_largest(generator: torch.Generator) -> None:
    one, two = torch.tensor([0.1, 0.9, 0.3]), torch.tensor([0.2, 0.1, 0.3])
    assert kse.combine([one, two]).tolist() == pytest.approx([0.2, 0.9, 0.3])
