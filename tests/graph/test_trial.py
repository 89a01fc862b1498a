"""Trials of an edit: which channels they leave, that they leave the replica as it was, and what they notice."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.graph import capture
from compressor.graph.channels import Group
from compressor.graph.skeleton import Replica
from compressor.graph.trial import edited, grown, half, uneven

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
