"""The map after a plan, on the arrays themselves and against loops over lists."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compressor.errors import ModelError
from compressor.graph import Channels, capture
from compressor.graph.channels import SINGLE
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from compressor.surgery.renumber import Renumbering
from tests.networks import Residual


def by_hand(held: list[int], gone: set[int], newcomers: dict[int, int]) -> list[int]:
    """Runs of one channel stay together; all places of a newcomer follow the run of the channel it comes after."""
    after: list[int] = []
    runs: list[list[int]] = []
    for identity in held:
        if runs and runs[-1][-1] == identity:
            runs[-1].append(identity)
        else:
            runs.append([identity])
    for run in runs:
        if run[0] not in gone:
            after += run
            after += [newcomers[run[0]]] * len(run) if run[0] in newcomers else []
    return after


@given(st.data())
def test_arrays_change_as_lists_would(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    held = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20))
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    masters = data.draw(st.sets(st.integers(0, count - 1)))
    newcomers = {master: count + number for number, master in enumerate(sorted(masters - gone))}
    mask = np.isin(np.arange(count), list(gone))
    newcomer = np.array([newcomers.get(i, -1) for i in range(count)])
    ids = np.array(held)
    renumbering = Renumbering(mask, newcomer)
    wanted = by_hand(held, gone, newcomers)
    assert renumbering.array(ids).tolist() == wanted
    order, new = renumbering.sources(ids)
    assert [int(ids[place]) for place in order] == [
        identity if identity < count else next(m for m, n in newcomers.items() if n == identity) for identity in wanted
    ]
    assert new.tolist() == [identity >= count for identity in wanted]


def test_an_array_that_does_not_change_stays_the_same_object() -> None:
    ids = np.array([3, 1, 2])
    gone = np.array([True, False, False, False])
    assert Renumbering(gone, np.full(4, -1)).array(ids) is ids


def test_identities_of_a_plan() -> None:
    model = Residual()
    channels = capture(model, model.example())
    a, b = channels.group("a1").ids.tolist(), channels.group("b1").ids.tolist()
    plan = Plan(
        (Prune("a1", (a[0],), "t"), Insert("a1", a[2], "t"), Merge("b1", b[1], b[3], "t"), Insert("b1", b[0], "t"))
    )
    updated = operate_(model, plan, channels)
    first = channels.next_id
    assert updated.group("a1").ids.tolist() == [a[1], a[2], first, a[3], a[4]]
    assert updated.group("b1").ids.tolist() == [b[0], first + 1, b[1], b[2]]
    assert updated.group("stem") is channels.group("stem")
    assert updated.next_id == first + 2


def pruned_to_one() -> tuple[nn.Module, Channels]:
    model = Residual()
    channels = capture(model, model.example())
    return model, operate_(model, Plan((Prune("a1", tuple(channels.group("a1").ids[1:].tolist()), "t"),)), channels)


def test_a_group_of_one_channel_left_is_frozen_and_says_so() -> None:
    model, updated = pruned_to_one()
    assert updated.frozen["a1"] == SINGLE
    assert {group.name for group in updated.free} == {"stem", "b1"}
    with pytest.raises(ModelError, match="a1 cannot be edited: a single channel"):
        operate_(model, Plan((Insert("a1", int(updated.group("a1").ids[0]), "t"),)), updated)
    assert model(model.example()).shape == (2, 4)


def test_a_group_of_two_channels_left_is_free() -> None:
    model = Residual()
    channels = capture(model, model.example())
    updated = operate_(model, Plan((Prune("a1", tuple(channels.group("a1").ids[2:].tolist()), "t"),)), channels)
    assert updated.group("a1").frozen is None and updated.group("a1").size == 2


def test_a_frozen_group_keeps_its_reason() -> None:
    _, updated = pruned_to_one()
    assert updated.frozen["head"] == "output of the model"


def test_sites_and_sizes_follow() -> None:
    model, updated = pruned_to_one()
    module, made = model.a1, []
    module.register_forward_hook(lambda _m, _x, y: made.append(y))
    model.eval()(model.example())
    [site] = [site for site in updated.sites_by_module if site.module == "a1"]
    assert site.shape == tuple(made[0].shape) == (2, 1, 8, 8)
    assert module.out_channels == 1 == model.an.num_features == model.a2.in_channels
    assert torch.is_tensor(module.weight) and module.weight.shape == (1, 6, 3, 3)
