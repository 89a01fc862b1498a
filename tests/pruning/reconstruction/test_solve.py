"""Reconstruction against slow obvious versions of it, on layers of every kind."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compressor.graph import Channels, capture
from compressor.graph.trace import call_arguments
from compressor.pruning.reconstruction import Reconstruction, gram, reconstruct_, solve
from compressor.surgery import Plan, Prune, operate_
from tests.equivalence import half_plan, randomise_
from tests.networks import NETWORKS

EXACT = 1e-9  # a ridge so small that the solution is that of numpy's lstsq


def cut(model: nn.Module, channels: Channels, gone: dict[str, list[int]]) -> tuple[nn.Module, Plan]:
    """The model without these channels of each group, counted from 0."""
    small = copy.deepcopy(model)
    prunes = (Prune(name, tuple(channels.group(name).ids[which].tolist()), "test") for name, which in gone.items())
    plan = Plan(tuple(prunes))
    operate_(small, plan, channels)
    return small, plan


def refitted(model: nn.Module, gone: dict[str, list[int]], inputs: list[Tensor]) -> tuple[nn.Module, Reconstruction]:
    channels = capture(model, inputs[0][:2])
    small, plan = cut(model, channels, gone)
    return small, reconstruct_(small, model, channels, plan, inputs)


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(model: nn.Module, given: Any) -> Tensor:
    arguments, keywords = call_arguments(given, model)
    leaves = tree_leaves(model(*arguments, **keywords))
    return torch.cat([leaf.flatten().double() for leaf in leaves if isinstance(leaf, Tensor)])


def lstsq(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (inputs, outputs) and constant (outputs,) by numpy."""
    ones = np.ones((len(x), 1))
    solved = np.linalg.lstsq(np.concatenate([x.numpy(), ones], 1), y.numpy(), rcond=None)[0]
    return torch.from_numpy(solved[:-1]), torch.from_numpy(solved[-1])


@pytest.fixture
def unpulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always take the solution, and let nothing pull at it."""
    judge = gram.choose

    def last(candidates: Any, rows: Any) -> tuple[Tensor, Tensor]:
        chosen, errors = judge(candidates, rows)
        return torch.full_like(chosen, len(candidates) - 1), errors

    monkeypatch.setattr(gram, "_RIDGES", (EXACT,))
    monkeypatch.setattr(gram, "choose", last)


class Two(nn.Module):
    """A layer, and one that reads it."""

    def __init__(self, first: nn.Module, second: nn.Module, act: Any = torch.tanh) -> None:
        super().__init__()
        self.first, self.second, self.act = first, second, act
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


@torch.no_grad()
def test_redundant_channels_of_a_linear_network_are_lost_without_a_trace(unpulled):
    model = Two(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3, padding=1), act=nn.Identity())
    mix = torch.randn(5, 3, dtype=torch.float64)
    model.first.weight[3:] = torch.einsum("oi,ichw->ochw", mix, model.first.weight[:3])
    model.first.bias[3:] = mix @ model.first.bias[:3]
    x = images(64, 3, 8, 8)
    small, _ = refitted(model, {"first": [3, 4, 5, 6, 7]}, list(x.split(16)))
    assert small.first.weight.shape[0] == 3
    error = (small(x) - model(x))[:, :, 1:-1, 1:-1]  # at the border a constant is not what the padding gives
    assert float(error.abs().max()) < 1e-4 * float(model(x).std())


class Places(nn.Module):
    """Linear layers at every place of tokens or of a map with channels last, behind them a residual sum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        inner = x.permute(0, 2, 3, 1) if self.kind == "map" else x
        inner = self.second(self.first(inner))
        if self.kind == "map":
            inner = (self.scale * inner).permute(0, 3, 1, 2)
        return x + inner


@torch.no_grad()
@pytest.mark.parametrize(("kind", "shape"), [("tokens", (7, 6)), ("map", (6, 4, 5)), ("rows", (6,))])
def test_layers_at_many_places_are_refitted_behind_a_residual_sum(kind, shape, unpulled):
    model = Places(kind)
    mix = torch.randn(9, 3, dtype=torch.float64)
    model.first.weight[3:] = mix @ model.first.weight[:3]
    model.first.bias[3:] = mix @ model.first.bias[:3]
    x = images(64, *shape)
    small, found = refitted(model, {"first": list(range(3, 12))}, list(x.split(16)))
    assert [layer.name for layer in found.layers] == ["second.weight"]
    assert float((small(x) - model(x)).abs().max()) < 1e-4 * float(model(x).std())


class Mixer(nn.Module):
    """A layer that mixes the places of each channel, and one that mixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.places, self.last = nn.Linear(6, 12), nn.Linear(7, 7), nn.Linear(12, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.places(x.transpose(1, 2)).transpose(1, 2))


@torch.no_grad()
def test_a_layer_with_a_row_for_every_channel_stays_as_it_is():
    model, x = Mixer(), images(64, 7, 6)
    small, found = refitted(model, {"first": [1, 4, 5, 8]}, list(x.split(16)))
    assert [layer.name for layer in found.layers] == ["last.weight"]
    assert any("have a row for every channel: places.weight" in note for note in found.notes)
    assert torch.equal(small.places.weight, model.places.weight)


LAYERS = {
    "plain": (nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(8, 5, 3, stride=2, padding=1, dilation=2)),
    "no bias": (nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(8, 5, 3, bias=False)),
    "wrapped": (nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular")),
    "same": (nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(8, 5, (2, 3), padding="same")),
    "transposed": (nn.Conv2d(3, 8, 3), lambda: nn.ConvTranspose2d(8, 5, 3, stride=2, padding=1, output_padding=1)),
    "one dimension": (nn.Conv1d(3, 8, 3), lambda: nn.Conv1d(8, 5, 3, stride=2)),
    "three dimensions": (nn.Conv3d(3, 8, 1), lambda: nn.Conv3d(8, 5, 2)),
    "linear": (nn.Linear(6, 8), lambda: nn.Linear(8, 5)),
}


def unfolded(layer: nn.Module, x: Tensor) -> Tensor:
    """(rows, inputs x taps) of what a layer is given, by pushing one input after the other through it."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    taps = int(np.prod(layer.kernel_size))
    probe = copy.deepcopy(layer)
    probe.bias = None
    columns = []
    for channel in range(x.shape[1]):
        for tap in range(taps):
            weight = torch.zeros_like(layer.weight)
            one = weight[channel, 0] if isinstance(layer, nn.ConvTranspose2d) else weight[0, channel]
            one.view(-1)[tap] = 1
            probe.weight = nn.Parameter(weight)
            columns.append(probe(x)[:, 0].flatten())
    return torch.stack(columns, 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS)
def test_weights_are_those_of_numpy(kind, unpulled):
    first, second = LAYERS[kind][0], LAYERS[kind][1]()
    model = Two(copy.deepcopy(first), second)
    shape = {"one dimension": (3, 14), "three dimensions": (3, 4, 3, 3), "linear": (5, 6), "transposed": (3, 6, 6)}.get(
        kind, (3, 8, 8)
    )
    x = images(60, *shape)
    small, found = refitted(model, {"first": [1, 4, 6]}, list(x.split(25)))
    assert [layer.name for layer in found.layers] == ["second.weight"]
    given = unfolded(small.second, torch.tanh(small.first(x)))
    dense = model(x)
    wanted = dense.flatten(0, -2) if kind == "linear" else dense.movedim(1, -1).flatten(0, -2)
    if small.second.bias is None:
        weights = torch.from_numpy(np.linalg.lstsq(given.numpy(), wanted.numpy(), rcond=None)[0])
    else:
        weights, constant = lstsq(given, wanted)
        torch.testing.assert_close(small.second.bias, constant, atol=1e-4, rtol=1e-4)
    own = small.second.weight
    own = own.movedim(0, 1) if isinstance(small.second, nn.ConvTranspose2d) else own
    torch.testing.assert_close(own.flatten(1), weights.T, atol=1e-4, rtol=1e-4)


class Grouped(nn.Module):
    """Convolutions in groups, and one for each channel, behind a layer that is cut; batch norm takes up constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, groups=2, bias=False)
        self.norm, self.deep, self.last = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.deep(torch.tanh(self.norm(self.middle(torch.tanh(self.first(x))))))))


@torch.no_grad()
def test_groups_are_solved_by_themselves(unpulled):
    model = randomise_(Grouped())
    x = images(48, 3, 9, 9)
    small, _ = refitted(model, {"first": [0, 2]}, [x])
    given, dense = torch.tanh(small.first(x)), torch.tanh(model.first(x))
    for part in range(2):
        columns = F.unfold(given[:, 2 * part : 2 * part + 2], 3).transpose(1, 2).flatten(0, 1)
        wanted = model.middle(dense)[:, 3 * part : 3 * part + 3].flatten(2).transpose(1, 2).flatten(0, 1)
        weights, constant = lstsq(columns, wanted)
        own = slice(3 * part, 3 * part + 3)
        torch.testing.assert_close(small.middle.weight[own].flatten(1), weights.T, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.norm.running_mean[own] - small.norm.running_mean[own], constant)
    given = torch.tanh(small.norm(small.middle(given)))
    wanted = model.deep(torch.tanh(model.norm(model.middle(dense))))
    for channel in range(6):
        columns = F.unfold(given[:, channel : channel + 1], 3).transpose(1, 2).flatten(0, 1)
        weights, constant = lstsq(columns, wanted[:, channel].flatten()[:, None])
        torch.testing.assert_close(small.deep.weight[channel].flatten(), weights[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(small.deep.bias[channel], constant[0], atol=1e-5, rtol=1e-5)


class Residual(nn.Module):
    """The branch's last layer stands behind batch norm and in front of a sum; the shortcut loses something, too."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.stem, self.short = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        self.inner, self.back, self.norm = (
            nn.Conv2d(6, 7, 3, padding=1),
            nn.Conv2d(7, 5, 1, bias=False),
            nn.BatchNorm2d(5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        short = torch.tanh(self.short(x))
        branch = self.norm(self.back(torch.tanh(self.inner(x))))
        if self.inplace:
            branch += short
            return branch
        return short - branch


@torch.no_grad()
@pytest.mark.parametrize(
    ("inplace", "sizes"),
    [(False, [(7, 7)]), (True, [(7, 7)]), (True, [(7, 7), (5, 9)])],
    ids=["new", "in place", "sizes"],
)
def test_a_branch_makes_up_for_its_shortcut(inplace, sizes, unpulled):
    model = randomise_(Residual(inplace))
    batches = [part for size in sizes for part in images(40, 3, *size).split(10)]
    small, _ = refitted(model, {"stem": [0, 3], "inner": [1, 2, 5]}, batches)
    norm, rows = model.norm, []
    for x in batches:
        stem = torch.tanh(small.stem(x))
        short, given = torch.tanh(small.short(stem)), torch.tanh(small.inner(stem))
        branch = model(x) - short if inplace else short - model(x)
        wanted = (branch - norm.bias[:, None, None]) / norm.weight[:, None, None]
        wanted = wanted * (norm.running_var + norm.eps).sqrt()[:, None, None] + norm.running_mean[:, None, None]
        rows.append([each.movedim(1, -1).flatten(0, 2) for each in (given, wanted)])
    weights, constant = lstsq(*map(torch.cat, zip(*rows, strict=True)))
    torch.testing.assert_close(small.back.weight.flatten(1), weights.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_mean - small.norm.running_mean, constant, atol=1e-5, rtol=1e-5)


class Shared(nn.Module):
    """One convolution reads two maps that other layers make."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.both = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(torch.tanh(self.one(x))), self.both(torch.tanh(self.two(x)))


@torch.no_grad()
def test_rows_of_a_layer_that_is_called_twice_are_stacked(unpulled):
    model = Shared().double()
    x = images(40, 3, 7, 7)
    small, found = refitted(model, {"one": [0, 3]}, list(x.split(10)))
    assert len(found.layers) == 1
    given = torch.cat([torch.tanh(small.one(x)), torch.tanh(small.two(x))]).movedim(1, -1).flatten(0, 2)
    wanted = torch.cat(model(x)).movedim(1, -1).flatten(0, 2)
    weights, constant = lstsq(given, wanted)
    torch.testing.assert_close(small.both.weight.flatten(1), weights.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.both.bias, constant, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_neither_the_order_of_images_nor_the_batch_size_matters():
    model = randomise_(Residual(False))
    x = images(48, 3, 12, 12)  # 144 places, so some are drawn
    orders = (x.split(48), x[torch.randperm(48, generator=torch.Generator().manual_seed(1))].split(7))
    one, other = (refitted(model, {"stem": [0, 3], "inner": [1]}, list(parts))[0].state_dict() for parts in orders)
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], atol=1e-8, rtol=1e-6)


@torch.no_grad()
def test_a_solution_knows_what_an_activation_cuts_off():
    model = Two(nn.Conv2d(3, 12, 3), nn.Sequential(nn.Conv2d(12, 6, 3), nn.ReLU()), act=torch.relu)
    model.second[0].bias.sub_(0.3)  # most outputs are cut off
    x = images(512, 3, 9, 9)
    small, _ = refitted(model, {"first": [0, 1, 2, 3, 4, 5]}, list(x.split(128)))
    plain = copy.deepcopy(small)
    given = F.unfold(torch.relu(small.first(x)), 3).transpose(1, 2).flatten(0, 1)
    weights, constant = lstsq(
        given, model.second[0](torch.relu(model.first(x))).flatten(2).transpose(1, 2).flatten(0, 1)
    )
    plain.second[0].weight.copy_(weights.T.view_as(plain.second[0].weight))
    plain.second[0].bias.copy_(constant)
    fresh = images(512, 3, 9, 9, seed=1)
    ours, theirs = (F.mse_loss(each(fresh), model(fresh)) for each in (small, plain))
    assert ours < 0.98 * theirs


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_is_worse_for_it(name):
    torch.manual_seed(0)
    model = randomise_(NETWORKS[name]())
    example = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, model.example())
    channels = capture(model, example)
    plan = half_plan(channels)
    if not plan.edits:
        pytest.skip("nothing can be pruned")

    def draw(seed: int) -> Any:
        return tree_map(
            lambda leaf: images(16, *leaf.shape[1:], seed=seed) if leaf.is_floating_point() else leaf, example
        )

    small = copy.deepcopy(model)
    operate_(small, plan, channels)
    wanted, before = outputs(model, draw(9)), outputs(small, draw(9))
    found = reconstruct_(small, model, channels, plan, [draw(seed) for seed in range(4)])
    assert all(layer.after <= layer.before for layer in found.layers)
    assert F.mse_loss(outputs(small, draw(9)), wanted) <= F.mse_loss(before, wanted) + 1e-9


@torch.no_grad()
def test_a_layer_with_many_inputs_is_folded_by_channel(monkeypatch):
    monkeypatch.setattr(solve, "LARGEST", 40)
    model = Two(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Flatten(), nn.Linear(8 * 49, 5)), act=nn.Identity())
    mix = torch.randn(5, 3, dtype=torch.float64)
    model.first.weight[3:] = torch.einsum("oi,ichw->ochw", mix, model.first.weight[:3])
    x = images(64, 3, 7, 7)
    small, _ = refitted(model, {"first": [3, 4, 5, 6, 7]}, list(x.split(16)))
    assert float((small(x) - model(x)).std()) < 2e-2 * float(model(x).std())


@torch.no_grad()
def test_values_that_are_not_finite_leave_a_layer_as_it_was_cut():
    model = Two(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3))
    x = images(32, 3, 8, 8)
    x[3, 0, 0, 0] = torch.inf
    model.act = torch.relu
    channels = capture(model, x[:2])
    small, plan = cut(model, channels, {"first": [0, 1]})
    before = small.second.weight.clone()
    found = reconstruct_(small, model, channels, plan, [x])
    assert torch.equal(small.second.weight, before)
    assert any(words.endswith("held back: second.weight") for words in found.words())


class Steers(nn.Module):
    """Goes another way for other images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu() if len(x) < 5 else self.first(x).sigmoid())


@torch.no_grad()
def test_a_network_that_goes_another_way_is_left_as_it_was_cut():
    model = Steers().double().eval()
    small, found = refitted(model, {"first": [0, 3]}, [images(9, 6)])
    assert torch.equal(small.second.weight, model.second.weight[:, [1, 2, 4, 5, 6, 7]])
    assert not found.layers and any("not refitted" in words for words in found.words())


@torch.no_grad()
def test_dead_channels_and_few_rows_do_no_harm():
    model = Two(nn.Linear(6, 40), nn.Linear(40, 3), act=torch.relu)
    model.first.bias[:20] = -100.0
    x = images(24, 6)
    channels = capture(model, x[:2])
    small, plan = cut(model, channels, {"first": [0, 25, 26, 27, 28, 29, 30, 31]})
    fresh = images(200, 6, seed=5)
    before = F.mse_loss(small(fresh), model(fresh))
    found = reconstruct_(small, model, channels, plan, [x])
    assert all(layer.after <= layer.before for layer in found.layers)
    assert F.mse_loss(small(fresh), model(fresh)) <= before


@torch.no_grad()
def test_the_error_of_a_layer_that_always_gives_the_same_is_told_in_few_digits():
    """Its outputs have no variance but that of rounding, of which any error is very many times as much."""
    torch.manual_seed(0)
    dead = nn.Conv2d(8, 12, 3)
    dead.weight.zero_()
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), dead, nn.ReLU(), pooled).eval()
    _, found = refitted(model, {"2": [0, 1, 2]}, [images(32, 1, 8, 8).float()])
    (layer,) = found.layers
    assert layer.after < 1e-2 and len(found.words()[0]) < 250
