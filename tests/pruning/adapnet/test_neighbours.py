"""Kernels cut out of real layers, and newcomers put back into them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from compressor.graph.capture import capture
from compressor.pruning.adapnet import neighbours
from compressor.pruning.adapnet.neighbours import indicators, makers, newcomer, readers
from compressor.surgery import Insert, Plan, operate_


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Forked(nn.Module):
    """One convolution read by a convolution and, flattened, by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.conv = nn.Conv2d(6, 9, 3, padding=1)
        self.fc, self.head = nn.Linear(6 * 16, 7), nn.Linear(9 * 16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(x.flatten(1)) + self.head(self.conv(x).relu().flatten(1))


def test_readers_kernels_are_columns_of_convolutions_and_flattened_maps(generator: torch.Generator) -> None:
    model = Forked()
    channels = capture(model, torch.zeros(2, 3, 4, 4))
    found = {tuple(kernels.shape): kernels for kernels in readers(model, channels, channels.group("stem.0"))}
    assert set(found) == {(9, 6, 9), (7, 6, 16)}
    torch.testing.assert_close(found[9, 6, 9], model.conv.weight.detach().flatten(2))
    torch.testing.assert_close(found[7, 6, 16], model.fc.weight.detach().view(7, 6, 16))
    values = indicators(model, channels, channels.group("stem.0"), generator)
    each = [neighbours.indicator(kernels, generator, 5, 256) for kernels in found.values()]
    torch.testing.assert_close(values, torch.maximum(*each))


class Summed(nn.Module):
    """Two convolutions make the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.one(x) + self.other(x))
        return scores


def test_depthwise_layers_pass_channels_on_and_do_not_make_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(16, 2)
    )
    channels = capture(model, torch.zeros(2, 3, 4, 4))
    assert makers(model, channels.group("0")) == ["0"]


@pytest.mark.parametrize("kind", ["inverse", "rotary", "scaling", "translational"])
def test_an_inserted_filter_is_its_masters_correlative_and_changes_nothing(
    kind: str, generator: torch.Generator
) -> None:
    model = Forked()
    with torch.no_grad():
        model.stem[1].running_mean.copy_(torch.randn(6))
    model.eval()
    x = torch.randn(4, 3, 4, 4)
    before = model(x)
    channels = capture(model, x[:2])
    group = channels.group("stem.0")
    master = int(group.ids[2])
    rows, became = newcomer(model, channels, group, master, kind, generator)
    assert became == kind
    kernel = model.stem[0].weight.detach()[2].clone()
    operate_(model, Plan((Insert(group.name, master, "test", rows),)), channels)
    torch.testing.assert_close(model(x), before)
    new = model.stem[0].weight.detach()[3]
    assert new.norm() == pytest.approx(float(kernel.norm()))
    if kind == "inverse":
        assert torch.equal(new, -kernel)
    if kind == "rotary":
        assert torch.equal(new, kernel.rot90(-1, (1, 2)))
    sign = -1 if kind == "inverse" else 1
    assert model.stem[1].running_mean[3] == sign * model.stem[1].running_mean[2]
    assert model.stem[0].bias[3] == model.stem[0].bias[2]


@pytest.fixture
def drawing() -> torch.Generator:
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
def test_indicator_equals_a_loop(drawing: torch.Generator, readers: int, elements: int) -> None:
    weight = torch.randn(readers, 6, elements, generator=drawing)
    if readers == 2:  # two kernels are equally far from each other: nothing is told apart
        assert neighbours.indicator(weight, drawing, 5, 256).tolist() == [1.0] * 6
        return
    expected = slow_indicator(weight.double().numpy(), 5)
    np.testing.assert_allclose(neighbours.indicator(weight, drawing, 5, 256), expected, atol=1e-4)


def test_chunks_over_channels_change_nothing(drawing: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(10, 9, 9, generator=drawing)
    whole = neighbours.indicator(weight, drawing, 5, 256)
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", 250)
    assert torch.equal(neighbours.indicator(weight, drawing, 5, 256), whole)


def test_one_reader_and_equal_kernels_say_nothing(drawing: torch.Generator) -> None:
    assert neighbours.indicator(torch.randn(1, 5, 9), drawing, 5, 256).tolist() == [1.0] * 5
    weight = torch.randn(8, 5, 9, generator=drawing)
    weight[:, 2] = 0.0
    values = neighbours.indicator(weight, drawing, 5, 256)
    others = neighbours.indicator(weight[:, [0, 1, 3, 4]], drawing, 5, 256)
    assert float(values[2]) == 1.0
    torch.testing.assert_close(values[[0, 1, 3, 4]], others)


def test_many_readers_are_sampled_by_the_generator_alone() -> None:
    weight = torch.randn(40, 6, 9, generator=torch.Generator().manual_seed(1))
    first, second, other = (neighbours.indicator(weight, torch.Generator().manual_seed(s), 5, 16) for s in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_several_readers_give_their_largest(drawing: torch.Generator) -> None:
    one, two = torch.tensor([0.1, 0.9, 0.3]), torch.tensor([0.2, 0.1, 0.3])
    assert neighbours.combine([one, two]).tolist() == pytest.approx([0.2, 0.9, 0.3])
