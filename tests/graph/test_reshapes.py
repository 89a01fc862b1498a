"""Reshapes that split channels: the dimension whose size the code lets follow is the one that they go on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compressor.graph import capture
from compressor.graph.channels import SINGLE
from compressor.surgery import operate_
from tests.equivalence import (
    half_plan,
    left_out,
    masked_outputs,
    outputs,
    randomise_,
    relative_error,
    same_map,
)


class Reshaping(nn.Module):
    def __init__(self, function: Callable[["Reshaping", Tensor], Tensor], width: int, left: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function, self.heads, self.head_dim = function, 3, width // 3
        self.a, self.b, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(left, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.function(self, self.a(x))).mean((2, 3)))


# what, function of maps (2, 12 or 24, 8, 8), how many channels become one, how many are left of one
RESHAPES: dict[str, tuple[Callable[[Reshaping, Tensor], Tensor], int, int]] = {
    "pairs": (lambda _, y: y.view(2, y.shape[1] // 2, 2, 8, 8).amax(2), 2, 2),
    "halves": (lambda _, y: y.view(2, 2, -1, 8, 8).amax(1), 2, 2),
    "fours": (lambda _, y: y.unflatten(1, (-1, 4)).amax(2), 4, 4),
    "sixes": (lambda _, y: y.view(2, y.shape[1] // 6, 6, 8, 8).amax(2), 6, 6),
    "six parts": (lambda _, y: y.view(2, 6, y.shape[1] // 6, 8, 8).amax(1), 6, 6),
    "gated pairs": (lambda _, y: y.unflatten(1, (-1, 2))[:, :, 0] * y.unflatten(1, (-1, 2))[:, :, 1].sigmoid(), 2, 2),
    "shuffled": (lambda _, y: y.view(2, 3, -1, 8, 8).transpose(1, 2).reshape(2, -1, 8, 8), 3, 1),
    "shuffled back": (lambda _, y: y.view(2, y.shape[1] // 3, 3, 8, 8).transpose(1, 2).reshape(2, -1, 8, 8), 3, 1),
    "pixels in front": (
        lambda _, y: y.view(2, 2, 2, -1, 8, 8).permute(0, 3, 4, 1, 5, 2).reshape(2, -1, 16, 16), 4, 4),
    "pixels behind": (
        lambda _, y: y.view(2, y.shape[1] // 4, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(2, -1, 16, 16), 4, 4),
    "pixels around": (
        lambda _, y: y.view(2, 2, y.shape[1] // 4, 2, 8, 8).permute(0, 2, 4, 1, 5, 3).reshape(2, -1, 16, 16), 4, 4),
    "heads of a stored number": (lambda m, y: y.view(2, m.heads, -1, 64).softmax(3).view(2, -1, 8, 8), 3, 1),
    "heads of a written size": (lambda _, y: y.view(2, y.shape[1] // 4, 4, 64).softmax(3).view(2, -1, 8, 8), 4, 1),
    "heads of stored number and size": (
        lambda m, y: y.view(2, m.heads, m.head_dim, 64).softmax(3).view(2, -1, 8, 8), 3, 1),
    "with pixels": (lambda _, y: y.view(2, y.shape[1] // 2, 16, 8).amax(3).unsqueeze(3), 2, 2),
    "with the batch": (lambda _, y: y.view(6, y.shape[1] // 3, 8, 8).relu().view(2, -1, 8, 8), 3, 1),
    "channels last": (
        lambda _, y: y.permute(0, 2, 3, 1).reshape(2, 8, 8, y.shape[1] // 2, 2).amax(4).permute(0, 3, 1, 2), 2, 2),
    "three axes": (lambda _, y: y.view(2, y.shape[1] // 6, 3, 2, 64).amax((2, 3)).unsqueeze(3), 6, 6),
    "interleaved": (lambda _, y: torch.stack([y[:, ::2], y[:, 1::2]], 2).flatten(1, 2), 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("width", [12, 24])
@pytest.mark.parametrize("name", RESHAPES)
def test_channels_go_on_the_dimension_that_follows(name: str, width: int) -> None:
    function, joined, gone = RESHAPES[name]
    model = randomise_(Reshaping(function, width, width // gone))
    x = torch.randn(2, 3, 8, 8).double()
    channels = capture(model, x)
    assert {group.name: group.size for group in channels.free} == {"a": width // joined, "b": 6}
    plan = half_plan(channels)
    reference = masked_outputs(model, x, channels, plan.removed)
    updated = operate_(model, plan, channels)
    assert relative_error(outputs(model, x), reference) < 1e-10
    # Of two a trial leaves one, at which some code changes its way; heads of 3 x 4 may lose either.
    if channels.group("a").size > 3 and "number and size" not in name:
        assert same_map(updated, capture(model, x)) is None


WRITTEN = {
    "view": (lambda _, y: y.view(2, 3, 4, 64).amax(1).view(2, 4, 8, 8), "view in the model has a size written"),
    "slice": (lambda _, y: y[:, 2:6], "slice in the model has a size written"),
    "split": (lambda _, y: y.split((5, 7), 1)[0], "split_with_sizes in the model has a size written"),
    "refused": (lambda _, y: refused(y), "does not run with other numbers of channels (12 channels, please)"),
    "difference": (lambda _, y: y[:, : y.shape[1] - 4], "slice in the model takes a size from something else"),
}  # fmt: skip


def refused(y: Tensor) -> Tensor:
    if y.shape[1] != 12:
        raise ValueError("12 channels, please")
    return y * 2


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_trial_objects_to_is_the_reason(name: str) -> None:
    function, reason = WRITTEN[name]
    left = function(None, torch.zeros(2, 12, 8, 8)).shape[1]
    assert reason in capture(Reshaping(function, 12, left), torch.randn(2, 3, 8, 8)).frozen["a"]


class Modulated(nn.Module):
    """As in FocalNet: a split into two parts as wide as the input, and gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 19, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        query, context, gates = self.project(x).split((x.shape[1], x.shape[1], 3), 1)
        mixed = sum(context.roll(turn, 2) * gates[:, turn : turn + 1] for turn in range(3))
        return self.head((x + self.out(query * mixed)).mean((2, 3)))


def test_sizes_taken_from_another_tensor_tie_to_it() -> None:
    model, x = randomise_(Modulated()), torch.randn(2, 3, 8, 8).double()
    channels = capture(model, x)
    assert {group.name: group.size for group in channels.free} == {"stem": 8}
    assert [why for name, why in channels.frozen.items() if name != "head"] == [SINGLE] * 3  # each gate
    plan = half_plan(channels)
    reference = masked_outputs(model, x, channels, plan.removed)
    operate_(model, plan, channels)
    assert relative_error(outputs(model, x), reference) < 1e-10


class Heads(nn.Module):
    """Sixteen heads of sixteen channels, of both of which the module knows the number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.heads, self.size = 16, 16
        self.a, self.b, self.head = nn.Conv2d(3, 256, 3, padding=1), nn.Conv2d(256, 6, 1), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.a(x).view(2, self.heads, self.size, 64) * self.scale).softmax(3)
        return self.head(self.b(x.view(2, -1, 8, 8)).mean((2, 3)))


def test_heads_of_which_there_are_more_than_channels_in_each_stay() -> None:
    model, x = randomise_(Heads()), torch.randn(2, 3, 8, 8).double()
    channels = capture(model, x)
    updated = operate_(model, half_plan(channels), channels)
    assert model.heads == 16 and 4 < model.size < 12
    assert same_map(updated, capture(model, x)) is None


class Shuffling(nn.Module):
    """Half of the channels goes through a layer of its own, then both halves are interleaved; again and again."""

    def __init__(self, units: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.units = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(units))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for unit in self.units:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, unit(right)], 1)
            x = x.view(2, 2, -1, 8, 8).transpose(1, 2).reshape(2, -1, 8, 8)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("units", [3, 4, 5, 8])
def test_channels_that_shuffles_tie_into_one_stay_tracked(units: int) -> None:
    """As in ShuffleNetV2: after some units no channel can go by itself, and that is the reason given everywhere."""
    model, x = randomise_(Shuffling(units)), torch.randn(2, 3, 8, 8).double()
    channels = capture(model, x)
    assert left_out(model, x, channels) == []
    assert {group.frozen for group in channels.groups} == {SINGLE, "output of the model"}
    assert channels.group("a").size == 1
