"""What every one-shot method keeps to, whatever it looks at."""

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.pruning.oneshot import decide
from compressor.pruning.scores import Given
from compressor.pruning.settings import ABOUT, PruneSettings, score_of
from tests.pruning.nets import NETS, batches

# Every method on every network it can judge: one has no batch norm.
PAIRS = [(net, method) for net in NETS for method in ABOUT if (net, method) != ("grouped", "bn-scale")]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    return request.param


@pytest.fixture
def model(pair):
    torch.manual_seed(3)
    return NETS[pair[0]]()


@pytest.fixture
def method(pair):
    return pair[1]


def chosen(model, channels, method, **settings):
    data = batches() if method == "taylor" else ()
    inputs = [images for images, _ in batches()] if method == "obs" or settings.get("allocate") == "error" else []
    return decide(model, channels, PruneSettings(method=method, **settings), Given(data, inputs))


def everything(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_every_method_of_the_catalogue_is_there():
    assert all(callable(score_of(name)) for name in ABOUT if name != "obs")


def test_deciding_changes_nothing_in_the_model(model, method):
    model.train()
    model.get_submodule(next(name for name, _ in model.named_children())).eval()
    before, modes = everything(model), [module.training for module in model.modules()]
    for parameter in list(model.parameters())[:2]:
        parameter.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    chosen(model, capture(model, model.example), method)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_deciding_leaves_no_hook(model, method):
    chosen(model, capture(model, model.example), method)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks and not module._backward_pre_hooks


@pytest.mark.parametrize("allocate", ["uniform", "global", "error"])
def test_the_same_seed_gives_the_same_plan(model, method, allocate):
    channels = capture(model, model.example)
    assert (
        chosen(model, channels, method, allocate=allocate).plan
        == chosen(model, channels, method, allocate=allocate).plan
    )


def test_frozen_groups_are_not_touched(model, method):
    kept = capture(model, model.example).free[-1].producers[0]
    channels = capture(model, model.example, keep=(kept,))
    plan = chosen(model, channels, method).plan
    assert plan.edits
    assert {edit.group for edit in plan.edits} <= {group.name for group in channels.free}
    frozen = [group.ids for group in channels.groups if group.frozen is not None]
    assert not np.isin(plan.removed, np.concatenate(frozen)).any()


def test_every_edit_says_why_in_words_and_numbers(model, method):
    channels = capture(model, model.example)
    for edit in chosen(model, channels, method).plan.edits:
        assert edit.why.startswith(f"{method}: the {len(edit.channels)} lowest of {channels.group(edit.group).size}")
        assert edit.numbers["lowest"] <= edit.numbers["highest"] <= edit.numbers["threshold"]


def test_a_channel_is_named_once(model, method):
    removed = chosen(model, capture(model, model.example), method).plan.removed
    assert len(set(removed)) == len(removed)


def test_no_group_is_emptied(model, method):
    channels = capture(model, model.example)
    for allocate in ("uniform", "global", "error"):
        for edit in chosen(model, channels, method, ratio=0.99, allocate=allocate).plan.edits:
            assert len(edit.channels) < channels.group(edit.group).size


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[1] != "random"], ids="-".join)
def test_damaged_weights_are_refused(model, method):
    channels = capture(model, model.example)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        chosen(model, channels, method)
