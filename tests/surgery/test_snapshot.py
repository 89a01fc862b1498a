"""An edit taken back leaves nothing behind, and rows of a plan give the same shapes again."""

import copy

import pytest
import torch

from compressor.errors import FileError
from compressor.graph import capture
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from compressor.surgery.edits import plan_of
from compressor.surgery.snapshot import Snapshot
from tests.equivalence import same_map
from tests.pruning.nets import NETS, batches


def trained(name):
    """A network after two steps, so that its optimizer has momentum."""
    torch.manual_seed(0)
    model = NETS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, optimizer


def plan_for(channels):
    """One edit of each kind in the first group that takes them, else a prune."""
    group = next((g for g in channels.free if g.prune_only is None and g.size >= 5), channels.free[0])
    ids = group.ids.tolist()
    if group.prune_only is not None or len(ids) < 5:
        return Plan((Prune(group.name, (ids[0],), "test", (0.5,)),), 3)
    return Plan(
        (
            Prune(group.name, (ids[0],), "test", (0.5,), {"p_value": 0.9}),
            Merge(group.name, ids[1], ids[2], "test", {"cosine": 0.8}),
            Insert(group.name, ids[3], "test"),
        ),
        3,
    )


@pytest.fixture(params=NETS)
def name(request):
    return request.param


def test_an_edit_taken_back_leaves_model_and_optimizer_as_they_were(name):
    model, optimizer = trained(name)
    channels = capture(model, model.example)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    parameters = list(model.parameters())
    snapshot = Snapshot.of(model, optimizer)
    operate_(model, plan_for(channels), channels, optimizer)
    snapshot.restore_()
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    for key, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], before[1][key]["momentum_buffer"])
    assert same_map(capture(model, model.example), channels) is None
    images, labels = batches()[0]
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def test_state_that_the_optimizer_did_not_have_is_gone_after_an_edit_taken_back(name):
    model = NETS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    channels = capture(model, model.example)
    snapshot = Snapshot.of(model, optimizer)
    images, labels = batches()[0]
    operate_(model, plan_for(channels), channels, optimizer)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()  # momentum in the edited shapes
    assert optimizer.state
    snapshot.restore_()
    assert not optimizer.state and all(parameter.grad is None for parameter in model.parameters())
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def test_a_snapshot_can_be_restored_twice(name):
    model, _ = trained(name)
    channels = capture(model, model.example)
    before = copy.deepcopy(model.state_dict())
    snapshot = Snapshot.of(model)
    for _ in range(2):
        operate_(model, plan_for(channels), channels)
        snapshot.restore_()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_rows_of_a_plan_give_the_same_shapes_and_channels(name):
    model, _ = trained(name)
    other = copy.deepcopy(model)
    channels = capture(model, model.example)
    plan = plan_for(channels)
    again = plan_of(list(plan.rows()))
    assert list(again.rows()) == list(plan.rows())
    one, two = operate_(model, plan, channels), operate_(other, again, channels)
    assert [group.ids.tolist() for group in one.groups] == [group.ids.tolist() for group in two.groups]
    assert [p.shape for p in model.parameters()] == [p.shape for p in other.parameters()]


@pytest.mark.parametrize("rows", [[], [{"kind": "merge", "period": 0, "group": "x", "channels": [1], "why": ""}]])
def test_rows_that_are_no_plan_are_refused(rows):
    with pytest.raises(FileError, match="an edit that is none"):
        plan_of(rows)
