"""Ties become one identity per channel, and channels in the same places become a group."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compressor.graph import capture
from compressor.graph.groups import Numbered, Reasons, connected, grouped, roots_of
from compressor.graph.propagate import Unions

PAIRS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


@given(PAIRS)
def test_what_is_tied_in_any_order_has_one_number(pairs):
    sets = [{each} for each in range(20)]
    for one, other in pairs:
        joined = sets[one] | sets[other]
        for each in joined:
            sets[each] = joined
    roots = connected([(np.array([one]), np.array([other])) for one, other in pairs], 20)
    assert all((roots[one] == roots[other]) == (other in sets[one]) for one in range(20) for other in range(20))
    assert set(roots.tolist()) == set(range(len(set(roots.tolist()))))


def ties_of(**blocks: int) -> Unions:
    ties = Unions()
    for name, size in blocks.items():
        ties.blocks[f"{name}.weight", 0] = ties.fresh(size)
    return ties


def groups_of(ties: Unions):
    ranks = {name: 2 for name, _ in ties.blocks}
    order = {name: place for place, name in enumerate(ranks)}
    return grouped(ties, Numbered(roots_of(ties)), ranks, order)


def test_channels_in_the_same_places_are_a_group_and_parts_are_groups_of_their_own():
    ties = ties_of(a=4, b=4, c=2)
    a, b, c = (ties.blocks[f"{name}.weight", 0] for name in "abc")
    ties.tie(a, b)
    ties.tie(a[:2], c)
    assert [(group.producers, group.size) for group in groups_of(ties)] == [(("a", "b", "c"), 2), (("a", "b"), 2)]


def test_frozen_and_free_channels_never_share_a_group_by_their_places():
    ties = ties_of(a=4)
    a = ties.blocks["a.weight", 0]
    ties.frozen.append((a[:1], "why"))
    ties.apart.append(a[:1])
    first, rest = groups_of(ties)
    assert (first.frozen, rest.frozen, rest.size) == ("why", None, 3)


def test_the_first_reason_counts():
    numbered = Numbered(np.arange(3))
    reasons = Reasons([(np.array([1]), "first"), (np.array([1, 2]), "second")], numbered)
    assert [reasons.of(each) for each in range(3)] == [None, "first", "second"]


class Renormed(nn.Module):
    """Normalises by statistics that it computes from its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(8, affine=False)

    def forward(self, x):
        mean, variance = self.norm.running_mean * 0.9, self.norm.running_var * 0.9
        return self.head(functional.batch_norm(self.body(x), mean, variance))


def test_statistics_that_are_computed_take_up_no_shift():
    channels = capture(Renormed(), torch.randn(1, 3, 4, 4))
    assert channels.group("body").frozen is None and set(channels.absorbers) == {"head.weight"}
