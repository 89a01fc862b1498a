"""Operators that move channels, against the data they move: what lands in one place has to be one channel.

Every channel is filled with its own number. Where the map says that a place holds a channel, the numbers that the
operator puts there have to be those of channels tied to it. Which channels are tied is stated beside each operator.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.graph.propagate import Propagation
from compressor.graph.trace import trace
from compressor.graph.unions import Unions, roots_of

Operator = Callable[[Tensor], Tensor]

# (what, operator on (batch, 12, 4, 4), which channels are one: those of equal number)
MOVES: list[tuple[str, Operator, Callable[[int], int]]] = [
    ("clone", lambda x: x.clone(), lambda c: c),
    ("relu", F.relu, lambda c: c),
    ("first half", lambda x: x[:, :6], lambda c: c),
    ("middle", lambda x: x[:, 2:7], lambda c: c),
    ("last, from the end", lambda x: x[:, -4:-1], lambda c: c),
    ("narrow", lambda x: x.narrow(1, 3, 5), lambda c: c),
    ("even", lambda x: x[:, ::2], lambda c: c // 2),
    ("odd", lambda x: x[:, 1::2], lambda c: c // 2),
    ("every third", lambda x: x[:, 2::3], lambda c: c // 3),
    ("every third pixel", lambda x: x[:, :, 1::3], lambda c: c),
    ("chunk", lambda x: x.chunk(3, 1)[1], lambda c: c % 4),
    ("split of equals", lambda x: x.split(6, 1)[1], lambda c: c % 6),
    ("split of others", lambda x: x.split((2, 7, 3), 1)[1], lambda c: c),
    ("split with a rest", lambda x: x.split(5, 1)[2], lambda c: c),
    ("cat of parts", lambda x: torch.cat([x[:, 7:], x[:, :5]], 1), lambda c: c),
    ("cat with itself", lambda x: torch.cat([x, x.relu()], 1), lambda c: c),
    ("cat of pixels", lambda x: torch.cat([x, x], -1), lambda c: c),
    ("stack in front", lambda x: torch.stack([x, x.relu()]), lambda c: c),
    ("stack behind channels", lambda x: torch.stack([x, x.relu()], 2).flatten(1, 2), lambda c: c),
    ("stack before channels", lambda x: torch.stack([x, x.relu()], 1).flatten(1, 2), lambda c: c),
    ("repeat", lambda x: x.repeat(1, 2, 1, 1), lambda c: c),
    ("repeat with a new dimension", lambda x: x.repeat(2, 1, 3, 1, 1)[0], lambda c: c),
    ("tile", lambda x: x.tile(3, 1, 1), lambda c: c),
    ("expand", lambda x: x[:, :, :, :, None].expand(-1, -1, -1, -1, 2), lambda c: c),
    ("expand in front", lambda x: x.expand(3, *x.shape), lambda c: c),
    ("permute", lambda x: x.permute(2, 0, 3, 1), lambda c: c),
    ("permute from the end", lambda x: x.permute(0, -1, -3, -2), lambda c: c),
    ("transpose", lambda x: x.transpose(1, -1), lambda c: c),
    ("movedim", lambda x: x.movedim(1, -1), lambda c: c),
    ("unsqueeze", lambda x: x[:, None], lambda c: c),
    ("unsqueeze from the end", lambda x: x.unsqueeze(-1), lambda c: c),
    ("squeeze", lambda x: x[:, :, :1].squeeze(2), lambda c: c),
    ("squeeze of all", lambda x: x[:, :, :1].squeeze(), lambda c: c),
    ("squeeze from the end", lambda x: x[..., :1].squeeze(-1), lambda c: c),
    ("one row", lambda x: x[:, :, 1], lambda c: c),
    ("one column", lambda x: x.select(-1, 2), lambda c: c),
    ("one image", lambda x: x[0], lambda c: c),
    ("flatten", lambda x: x.flatten(1), lambda c: c),
    ("flatten with the batch", lambda x: x.flatten(0, 1), lambda c: c),
    ("flatten of pixels", lambda x: x.flatten(2), lambda c: c),
    ("flatten channels last", lambda x: x.permute(0, 2, 3, 1).flatten(1), lambda c: c),
    ("view in groups", lambda x: x.view(x.shape[0], 3, 4, 4, 4), lambda c: c % 4),
    ("view in groups, swapped", lambda x: x.view(-1, 3, 4, 16).transpose(1, 2).reshape(-1, 12, 4, 4), lambda c: c % 4),
    ("one of the groups", lambda x: x.view(-1, 3, 4, 16)[:, 1], lambda c: c % 4),
    ("pixel shuffle", lambda x: F.pixel_shuffle(x, 2), lambda c: c // 4),
    ("pixel unshuffle", lambda x: F.pixel_unshuffle(x, 2), lambda c: c),
    ("channel shuffle", lambda x: torch.channel_shuffle(x, 3), lambda c: c % 4),
    ("patches", lambda x: F.unfold(x, (2, 3)), lambda c: c),
    ("windows", lambda x: x.unfold(2, 2, 1), lambda c: c),
    ("flip of pixels", lambda x: x.flip(2, 3), lambda c: c),
    ("roll of pixels", lambda x: x.roll((1, 2), (2, 3)), lambda c: c),
    ("channel by channel", lambda x: torch.cat([x[:, 1::2], x[:, ::2]], 1), lambda c: c // 2),
    ("padding of pixels", lambda x: F.pad(x, (1, 0, 2, 1), value=-1.0), lambda c: c),
    ("padding of channels", lambda x: F.pad(x, (0, 0, 0, 0, 2, 1), value=-1.0), lambda c: c),
    ("cut by negative padding", lambda x: F.pad(x, (-1, 0, 0, -1)), lambda c: c),
    ("reflection", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), lambda c: c),
    ("replication", lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), lambda c: c),
    ("max pooling", lambda x: F.max_pool2d(x, 2), lambda c: c),
    ("average pooling", lambda x: F.avg_pool2d(x, 2), lambda c: c),
    ("to one pixel", lambda x: F.adaptive_avg_pool2d(x, 1), lambda c: c),
    ("nearest", lambda x: F.interpolate(x, scale_factor=2), lambda c: c),
    ("bilinear", lambda x: F.interpolate(x, (7, 5), mode="bilinear"), lambda c: c),
    ("mean", lambda x: x.mean((2, 3)), lambda c: c),
    ("mean, kept", lambda x: x.mean((2, 3), keepdim=True), lambda c: c),
    ("mean of one dimension", lambda x: x.mean(-1), lambda c: c),
    ("mean of the batch", lambda x: x.mean(0), lambda c: c),
    ("largest", lambda x: x.amax((0, 3)), lambda c: c),
    ("largest, with places", lambda x: x.max(2).values, lambda c: c),
    ("sorted pixels", lambda x: x.flatten(2).sort(-1).values, lambda c: c),
    ("best pixels", lambda x: x.flatten(2).topk(3, -1).values, lambda c: c),
    ("gathered pixels", lambda x: x.gather(3, torch.zeros_like(x).long()), lambda c: c),
    ("pixels by index", lambda x: x.index_select(2, torch.tensor([3, 0], device=x.device)), lambda c: c),
    ("images by index", lambda x: x[torch.tensor([0, 1, 1], device=x.device)], lambda c: c),
    ("as strided", lambda x: x.as_strided(x.shape, x.stride()), lambda c: c),
]  # fmt: skip


class Moving(nn.Module):
    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator
        self.conv = nn.Conv2d(1, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.conv(x))


def walked(operator: Operator) -> tuple[Propagation, np.ndarray, list[int]]:
    """The walk, what each identity is tied into, and that of each of the twelve channels."""
    walk = Propagation(trace(Moving(operator), torch.zeros(2, 1, 4, 4)), Unions())
    walk.follow()
    roots = roots_of(walk.ties)
    return walk, roots, roots[walk.ties.blocks["conv.weight", 0]].tolist()


def reasons(walk: Propagation, roots: np.ndarray, block: list[int], marks: list[tuple[np.ndarray, str]]) -> set[str]:
    return {reason for ids, reason in marks if set(block) & set(roots[ids].tolist())}


@pytest.mark.parametrize(("operator", "one"), [pytest.param(*row[1:], id=row[0]) for row in MOVES])
def test_places_hold_the_channels_whose_data_they_hold(operator: Operator, one: Callable[[int], int]) -> None:
    walk, roots, block = walked(operator)
    assert not reasons(walk, roots, block, walk.ties.frozen) - {"output of the model"}
    track = walk.track(walk.trace.outputs[0])
    moved = operator(torch.arange(12.0).view(1, 12, 1, 1).expand(2, 12, 4, 4)).round()
    assert track
    for dim, ids in track.items():
        for place, identity in enumerate([] if walk.is_made(ids) else roots[ids].tolist()):  # made: of any size
            numbers = set(moved.select(dim, place).flatten().tolist()) - {-1.0}  # the value of padding
            assert {block[int(number)] for number in numbers} <= {identity}
            assert numbers or identity not in block
    numbers = [one(channel) for channel in range(12)]
    for channel in range(12):
        for other in range(channel):
            assert (block[channel] == block[other]) == (numbers[channel] == numbers[other]), (channel, other)


TWELVE = [0.5] * 12
# (what, operator on (batch, 12, 4, 4) that mixes channels or chooses among them, words of the reason)
FREEZES: list[tuple[str, Operator, str]] = [
    ("one channel", lambda x: x[:, 3], "picks single channels by number"),
    ("one channel from the end", lambda x: x.select(-3, 3), "picks single channels by number"),
    ("every fifth", lambda x: x[:, ::5], "takes every 5th channel"),
    ("every second, from the third", lambda x: x[:, 2::2], "takes every 2th channel"),
    ("every second, from the end", lambda x: x[:, -3::2], "takes every 2th channel"),
    ("all as tensors", lambda x: x.unbind(1)[2], "takes channels apart"),
    ("sorted", lambda x: x.sort(1).values, "sort in the model runs over channels"),
    ("best", lambda x: x.topk(3, 1).values, "topk in the model runs over channels"),
    ("best of flattened", lambda x: x.mean((2, 3)).topk(3).values, "topk in the model runs over channels"),
    ("gathered", lambda x: x.gather(1, torch.zeros_like(x).long()), "gather in the model picks channels"),
    ("by index_select", lambda x: x.index_select(1, torch.tensor([3, 0], device=x.device)), "picks channels"),
    ("by index", lambda x: x[:, torch.tensor([3, 0], device=x.device)], "picks channels by number"),
    ("by mask", lambda x: x[torch.ones(2, 12, dtype=torch.bool, device=x.device)], "picks channels by number"),
    ("windows", lambda x: x.unfold(1, 2, 1), "takes windows over channels"),
    ("softmax", lambda x: x.softmax(1), "softmax in the model runs over channels"),
    ("softmax from the end", lambda x: x.log_softmax(-3), "softmax in the model runs over channels"),
    ("cumulative sum", lambda x: x.cumsum(1), "cumsum in the model runs over channels"),
    ("flip", lambda x: x.flip(1, 2), "flip in the model runs over channels"),
    ("roll", lambda x: x.roll(1, 1), "roll in the model runs over channels"),
    ("roll of all", lambda x: x.roll((1, 2), (2, 1)), "roll in the model runs over channels"),
    ("cut by negative padding", lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), "pads channels by a fixed number"),
    ("pooling", lambda x: F.max_pool2d(x.permute(0, 2, 1, 3), 2), "runs over channels"),
    ("resizing", lambda x: F.interpolate(x.transpose(1, 3), scale_factor=2), "runs over channels"),
    ("strides", lambda x: x.as_strided((2, 6, 4, 4), (192, 32, 4, 1)), "reads memory by strides"),
    ("convolution", lambda x: F.conv2d(x.transpose(1, 2), x.new_zeros(2, 4, 3, 3)), "convolves over channels"),
    ("joined with others", lambda x: x + torch.tensor(TWELVE, device=x.device)[:, None, None], "not tracked"),
    ("joined with their numbers", lambda x: x + torch.arange(12.0, device=x.device)[:, None, None], "numbers them"),
    ("stacked with others", lambda x: torch.stack([x[0, :, 0, 0], torch.tensor(TWELVE).to(x.device)]), "not tracked"),
    ("running maximum", lambda x: x.cummax(1).values, "cummax in the model runs over channels"),
    ("unknown", lambda x: x.renorm(2, 0, 1.0), "operator renorm in the model has no rule"),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "word"), [pytest.param(*row[1:], id=row[0]) for row in FREEZES])
def test_choosing_among_channels_freezes_them_with_the_reason(operator: Operator, word: str) -> None:
    walk, roots, block = walked(operator)
    found = reasons(walk, roots, block, walk.ties.frozen)
    assert any(word in reason for reason in found), found
    frozen = {identity for ids, _ in walk.ties.frozen for identity in roots[ids].tolist()}
    assert set(block) <= frozen


# Operators that sum over channels: these can be pruned, but neither merged nor grown.
SUMS: list[tuple[str, Operator]] = [
    ("sum", lambda x: x.sum(1)),
    ("sum, kept", lambda x: x.sum(1, keepdim=True)),
    ("sum from the end", lambda x: x.sum(-3)),
    ("sum of all", lambda x: x.sum()),
    ("mean", lambda x: x.mean((1, 2))),
    ("largest", lambda x: x.amax(1)),
    ("variance", lambda x: x.var(1)),
    ("length", lambda x: x.norm(dim=1)),
    ("length of all", lambda x: x.norm()),
    ("product of two maps", lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2)),
    ("layer norm", lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (12,))),
    ("group norm of one", lambda x: F.group_norm(x, 1)),
]


@pytest.mark.parametrize("operator", [pytest.param(row[1], id=row[0]) for row in SUMS])
def test_sums_over_channels_rule_out_merging(operator: Operator) -> None:
    walk, roots, block = walked(operator)
    marked = {identity for ids, _ in walk.ties.prune_only for identity in roots[ids].tolist()}
    assert set(block) <= marked
    assert not reasons(walk, roots, block, walk.ties.frozen) - {"output of the model"}


@pytest.mark.parametrize("dims", [(2,), (2, 3), (0, 2, 3), (-1,), (0,)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_sums_over_other_dimensions_do_not(dims: tuple[int, ...], keepdim: bool) -> None:
    walk, roots, block = walked(lambda x: x.sum(dims, keepdim=keepdim))
    assert not reasons(walk, roots, block, walk.ties.prune_only)
