"""What is tied when tensors meet: known channels, unknown ones, and positions that take any size."""

import numpy as np
import torch
from torch import nn

from compressor.graph.propagate import Propagation
from compressor.graph.records import Trace
from compressor.graph.trace import trace
from compressor.graph.unions import Unions, roots_of


def empty() -> Propagation:
    return Propagation(Trace(), Unions())


def test_channels_that_join_are_tied_and_single_positions_broadcast():
    walk = empty()
    one, other = walk.ties.fresh(3), walk.ties.fresh(3)
    assert walk.join([(one, 3), (None, 1), (other, 3)], "why") is one
    roots = roots_of(walk.ties)
    assert (roots[one] == roots[other]).all() and not walk.ties.frozen


def test_channels_that_join_something_unknown_are_frozen_and_made_positions_are_not():
    walk = empty()
    ids, made = walk.ties.fresh(3), walk.made(3)
    assert walk.join([(ids, 3), (None, 3)], "why") is ids and [why for _, why in walk.ties.frozen] == ["why"]
    assert walk.join([(made, 3), (None, 3)], "why") is None and walk.is_made(made)


def test_made_positions_take_the_size_of_channels_also_through_each_other():
    walk = empty()
    ids, near, far = walk.ties.fresh(3), walk.made(3), walk.made(3)
    walk.tie(near, far)
    assert walk.is_made(far)
    walk.tie(ids, near)
    assert not walk.is_made(near) and not walk.is_made(far)


def test_the_same_arrays_are_tied_once():
    walk = empty()
    one, other = walk.ties.fresh(3), walk.ties.fresh(3)
    walk.tie(one, other)
    walk.tie(one, other)
    assert len(walk.ties.pairs) == 1


def test_runs_over_the_same_parameters_share_their_identities():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    ties = Unions()
    walks = [Propagation(trace(model, torch.zeros(2, 3, 4, 4), training=mode), ties) for mode in (False, True)]
    for walk in walks:
        walk.follow()
    roots = roots_of(ties)
    assert np.array_equal(roots[ties.blocks["0.weight", 0]], roots[ties.blocks["2.weight", 1]])
    assert walks[0].costs[0].factor == walks[1].costs[0].factor


def test_a_rule_says_which_attributes_of_its_module_count_its_channels():
    walk = Propagation(trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.zeros(2, 3, 4, 4)), Unions())
    walk.follow()
    found = {(size.module, size.attribute): len(size.ids) for size in walk.sizes}
    assert found == {("0", "out_channels"): 4, ("1", "num_features"): 4}


class Normed(nn.Module):
    """Normalises what a convolution makes, and zeros of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)), self.other(torch.zeros(1, 4, 2, 2))


def test_vectors_of_a_norm_hold_the_channels_that_it_norms_unless_these_take_any_size() -> None:
    walk = Propagation(trace(Normed(), torch.zeros(2, 3, 4, 4)), Unions())
    walk.follow()
    blocks = walk.ties.blocks
    assert blocks["norm.weight", 0] is blocks["norm.running_var", 0] is blocks["conv.weight", 0]
    assert not walk.is_made(blocks["other.weight", 0])
