"""Trials of an edit: which channels they leave, that they leave the replica as it was, and what they notice."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.graph import capture
from compressor.graph.channels import Group
from compressor.graph.objections import asks_for_sizes, inside
from compressor.graph.operators import lookup
from compressor.graph.propagate import Propagation
from compressor.graph.records import Ran
from compressor.graph.skeleton import Replica
from compressor.graph.trace import trace
from compressor.graph.trial import _asked, _Left, edited, grown, half, uneven
from compressor.graph.unions import Unions

MODEL = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Flatten(1), nn.Linear(96, 5))
CHANNELS = capture(MODEL, torch.zeros(1, 3, 4, 4))


def copies_of(kind):
    return kind(CHANNELS.groups, CHANNELS.next_id)


def test_every_free_group_keeps_some_channels_and_frozen_ones_all():
    for kind in (half, uneven):
        copies = copies_of(kind)
        assert all(0 < copies[group.ids].sum() < group.size for group in CHANNELS.free) or kind is uneven
        assert all((copies[group.ids] == 1).all() for group in CHANNELS.groups if group.frozen)


def test_only_what_may_grow_grows():
    groups = [Group("a", np.arange(4), (), ("a",)), Group("b", np.arange(4, 8), (), ("b",), prune_only="why")]
    copies = grown(tuple(groups), 8)
    assert copies[:4].sum() > 4 and (copies[4:] == 1).all()


@pytest.mark.parametrize("real", [False, True])
def test_the_replica_is_cut_and_put_back_whatever_happens(real):
    replica = Replica(MODEL, real=real)
    before = {name: (tensor.shape, tensor.data_ptr()) for name, tensor in replica.tensors.items()}
    copies = copies_of(half)
    left = [int(copies[CHANNELS.identities["2.weight", dim]].sum()) for dim in (0, 1)]
    with pytest.raises(KeyError), edited(replica, CHANNELS.identities, CHANNELS.sizes, copies):
        assert list(replica.tensors["2.weight"].shape[:2]) == left
        assert replica.modules["2"].out_channels == left[0]
        assert replica.model(torch.zeros(1, 3, 4, 4, device=replica.device)).shape == (1, 5)
        raise KeyError
    assert {name: (tensor.shape, tensor.data_ptr()) for name, tensor in replica.tensors.items()} == before
    assert replica.modules["2"].out_channels == 6


@pytest.mark.parametrize(
    ("module", "outer", "within"),
    [("a.b", "a", True), ("a", "a", True), ("a", "", True), ("ab", "a", False), ("a", "a.b", False)],
)
def test_a_module_lies_in_itself_and_in_those_around_it(module, outer, within):
    assert inside(module, outer) is within


def test_positions_of_any_size_are_loose_until_something_reads_their_number():
    ties = Unions()
    plain, free, counted = ties.fresh(2), ties.fresh(2, made=True), ties.fresh(2, made=True)
    for marks in (ties.frozen, ties.prune_only):
        left = _Left(np.ones(6, dtype=np.int64), np.arange(6), ties)
        assert not left.loose(None) and not left.loose(plain) and left.loose(free) and left.loose(counted)
        marks.append((counted[:1], "why"))
        left = _Left(np.ones(6, dtype=np.int64), np.arange(6), ties)
        assert not left.loose(plain) and left.loose(free) and not left.loose(counted)
        marks.clear()


class Added(nn.Module):
    """Adds zeros of a shape that its code says."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.a, self.b, self.shape = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), shape

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + torch.zeros(self.shape))


def walk_of(model: nn.Module) -> Propagation:
    walk = Propagation(trace(model, torch.zeros(2, 3, 4, 4)), Unions())
    walk.follow()
    return walk


@pytest.mark.parametrize(("shape", "asks"), [((1, 8, 1, 1), True), ((1, 8, 4, 4), True), ((2, 1, 1, 1), False)])
def test_a_tensor_of_one_position_behind_the_batch_asks_for_no_size(shape, asks):
    assert asks_for_sizes(walk_of(Added(shape))) is asks


@pytest.mark.parametrize(("args", "asked"), [((None, (5, 7)), [(0, 0, 5), (0, 1, 7)]), ((None, None), []), ((), [])])
def test_a_reshape_that_failed_asks_for_the_sizes_that_stand_in_its_call(args, asked):
    walk = walk_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten()))
    assert list(_asked(walk, 1, Ran(lookup(walk.trace.ops[1].func), "view", args, ()))) == asked
