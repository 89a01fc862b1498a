"""Where a network can be cut: one feature map alone carries the flow, which nothing behind reaches around."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.graph.cuts import Chain, tail

EXAMPLE = torch.zeros(2, 3, 16, 16)


class Around(nn.Module):
    """Three convolutions; what is behind the second takes something from in front of it."""

    def __init__(self, taken: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.taken = taken
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        second = self.b(first)
        if self.taken == "map":
            second = second + functional.adaptive_avg_pool2d(first, second.shape[2:])
        elif self.taken == "batch":
            second = second.reshape(first.shape[0], 4, -1).unsqueeze(3)
        return self.c(second).flatten(1)


def cuts_of(model: nn.Module) -> tuple[Chain, list[str]]:
    chain = Chain(model.eval(), EXAMPLE)
    return chain, [cut.made_by for cut in chain.cuts]


def test_a_map_that_is_used_behind_leaves_no_cut_between() -> None:
    _, plain = cuts_of(Around("nothing"))
    _, around = cuts_of(Around("map"))
    _, batch = cuts_of(Around("batch"))
    assert "b" in plain and "b" in batch and "b" not in around


@pytest.mark.parametrize("taken", ["nothing", "map", "batch"])
def test_the_parts_between_cuts_are_the_network(taken: str) -> None:
    model = Around(taken)
    chain, names = cuts_of(model)
    x = torch.randn(2, 3, 16, 16)
    whole = model(x)
    for start in range(len(names) - 1):
        head = chain.segment(0, start)(x) if start else x
        torch.testing.assert_close(chain.segment(start, len(names) - 1)(head), whole)


def test_what_is_behind_a_cut_runs_on_the_networks_own_layers() -> None:
    model = Around("nothing").eval()
    chain, names = cuts_of(model)
    rest = tail(chain, model, 1, len(names) - 1, "shared")
    assert rest.get_submodule("b") is model.b and rest.get_submodule("c") is model.c


class Standardised(nn.Conv2d):
    """A convolution whose weight is centred, row by row, and whose result is scaled by a parameter."""

    def __init__(self, made: int, taken: int) -> None:
        super().__init__(made, taken, 1)
        self.scale = nn.Parameter(torch.rand(taken, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(self.weight.shape[0], -1)
        weight = (rows - rows.mean(1, keepdim=True)).reshape(self.weight.shape)
        return functional.conv2d(x, weight, self.bias).relu() * self.scale


class Mixed(nn.Module):
    """Groups of channels are summed, by a size that the code writes down."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 2, 3, *x.shape[2:]).sum(1)


@pytest.mark.parametrize("norms", ["shared", "stats"])
def test_sizes_of_maps_and_of_weights_are_no_batch(norms: str) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), Standardised(5, 6), Mixed(), nn.Conv2d(3, 2, 1), nn.Flatten()
    model = nn.Sequential(*layers).eval()
    chain, names = cuts_of(model)
    x = torch.randn(4, 3, 16, 16)
    inside = chain.segment(0, 1)(x)
    torch.testing.assert_close(chain.segment(1, len(names) - 1)(inside), model(x))
    torch.testing.assert_close(tail(chain, model, 1, len(names) - 1, norms).eval()(inside), model(x))


@pytest.mark.parametrize("norms", ["stats", "switchable"])
def test_norms_of_their_own_stand_under_the_names_of_the_networks(norms: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    chain, names = cuts_of(model)
    part = tail(chain, model, 0, len(names) - 1, norms)
    assert set(part.state_dict()) == set(model.state_dict())
    assert type(part.get_submodule("1")) is nn.BatchNorm2d and part.get_submodule("1") is not model[1]
