"""Ties become one identity per channel, and channels in the same places become a group."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compressor.graph import capture
from compressor.graph.groups import Numbered, Reasons, batch_of, grouped
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Way, run
from compressor.graph.unions import Unions, connected, leads_of, roots_of
from compressor.surgery import operate_
from tests.equivalence import half_plan

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


@given(PAIRS)
def test_arrays_tied_whole_have_the_numbers_of_their_positions_tied_one_by_one(pairs):
    ties = Unions()
    blocks = [ties.fresh(3) for _ in range(6)]
    arrays = [*blocks, *(np.concatenate([one[:1], other[1:]]) for one, other in itertools.pairwise(blocks))]
    arrays += [block[::-1] for block in blocks]
    for one, other in pairs:
        ties.tie(arrays[one % len(arrays)], arrays[other % len(arrays)])
    roots, leads = roots_of(ties), leads_of(ties)
    assert np.array_equal(roots, connected(ties.pairs, ties.count))
    numbered = Numbered(roots, leads)
    assert all(np.array_equal(numbered(ids), roots[ids]) for ids in arrays)


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


@pytest.mark.parametrize(
    ("model", "shape", "images"),
    [
        (nn.Linear(6, 2), (4, 6), 4),
        (nn.Linear(6, 2), (6,), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), (5, 3, 4, 4), 5),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 4, 4), 1),
        (nn.Conv1d(3, 4, 1), (3, 7), 1),
    ],
    ids=["rows", "one row", "images", "one image", "one signal"],
)
def test_the_first_dimension_is_the_batch_unless_weights_read_it(model, shape, images):
    assert batch_of(run(Replica(model), Way(torch.empty(shape, device="meta")))) == images


class Counted(nn.Module):
    """A norm of the user's, which keeps how many channels it has."""

    def __init__(self):
        super().__init__()
        self.num_features, self.scale = 6, nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.scale[:, None, None]


def test_attributes_count_what_a_vector_of_their_module_holds():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Counted(), nn.Conv2d(6, 2, 1))
    channels = capture(model, torch.randn(1, 3, 4, 4))
    assert ("1", "num_features") in {(size.module, size.attribute) for size in channels.sizes}
    operate_(model, half_plan(channels), channels)
    assert model[1].num_features == len(model[1].scale) == 3
