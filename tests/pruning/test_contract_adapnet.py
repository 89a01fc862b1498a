"""What every method keeps to, for the one that decides while a network trains: its plans at the end of a period.

No plan is carried out here, so each of the three is decided on the network as it is.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from compressor.graph import capture
from compressor.pruning.adapnet import boundary, prune, schedule, tables
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.settings import ABOUT, TRAINED
from compressor.surgery import Insert, Prune
from tests.pruning.nets import NETS

# Everything qualifies that may, at the first boundary; layers count as wider than they are, so that they may grow.
EAGER = AdapNetSettings(lsep=6, freeze=False, beta_start=0.3, dict_size=96, max_width=2.0)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    for room in (boundary, tables, prune):
        monkeypatch.setattr(room, "ROW_MIN", 0)
    monkeypatch.setattr(prune, "GAMMA1", 2.0)
    monkeypatch.setattr(schedule, "BETA_FLOOR", 0.3)


@pytest.fixture(params=NETS)
def model(request):
    torch.manual_seed(3)
    return NETS[request.param]()


def watched(model, channels, settings=EAGER, seed=0):
    """A method at the end of its first period, in which nothing was trained."""
    method = AdapNet(settings, classes=5, steps_per_epoch=6, seed=seed)
    model.train()
    period(method, model, channels)
    return method


def period(method, model, channels):
    """Six batches of smooth random images, on which filters differ as they do on photographs."""
    generator = torch.Generator().manual_seed(1)
    with method.watch(model, channels).on(model) as watch:
        for _ in range(6):
            blobs = torch.randn(16, 3, 3, 3, generator=generator)
            model(torch.nn.functional.interpolate(3 * blobs, (8, 8), mode="bilinear"))
            method.step_done(watch.take())


def decided(model, channels, settings=EAGER, seed=0):
    return list(watched(model, channels, settings, seed).plans(model, lambda: channels))


def test_it_is_in_the_catalogue_and_no_one_shot_method():
    assert "adapnet" in TRAINED and "adapnet" not in ABOUT


def test_deciding_changes_nothing_in_the_model(model):
    channels = capture(model, model.example)
    method = watched(model, channels)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert list(method.plans(model, lambda: channels))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_watching_and_deciding_leave_no_hook(model):
    decided(model, capture(model, model.example))
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks and not module._backward_pre_hooks


def test_the_same_seed_gives_the_same_plans(model):
    channels = capture(model, model.example)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = decided(model, channels)
    model.load_state_dict(state)
    second = decided(model, channels)
    assert [list(plan.rows()) for plan in first] == [list(plan.rows()) for plan in second]


def test_frozen_groups_are_not_touched(model):
    kept = capture(model, model.example).free[-1].producers[0]
    channels = capture(model, model.example, keep=(kept,))
    free = {group.name for group in channels.free}
    plans = decided(model, channels)
    assert plans and {edit.group for plan in plans for edit in plan.edits} <= free
    frozen = np.concatenate([group.ids for group in channels.groups if group.frozen is not None])
    for plan in plans:
        assert not np.isin([identity for edit in plan.edits for identity in edit.channels], frozen).any()


def test_every_edit_says_why_in_words_and_numbers(model):
    for plan in decided(model, capture(model, model.example)):
        for edit in plan.edits:
            assert edit.why and edit.numbers
            assert all(isinstance(value, (int, float)) for value in edit.numbers.values())


def test_a_channel_is_named_once_in_a_plan(model):
    for plan in decided(model, capture(model, model.example)):
        named = [identity for edit in plan.edits for identity in edit.channels]
        assert len(set(named)) == len(named)


def test_no_group_is_emptied(model):
    channels = capture(model, model.example)
    for plan in decided(model, channels, replace(EAGER, prune_cap=1.0, merge_cap=1.0)):
        for group in channels.free:
            gone = sum(
                len(edit.channels) if isinstance(edit, Prune) else not isinstance(edit, Insert)
                for edit in plan.edits
                if edit.group == group.name
            )
            assert gone <= group.size - 2


def test_a_refused_plan_is_not_proposed_again_at_once(model):
    channels = capture(model, model.example)
    method = watched(model, channels, replace(EAGER, insert=False))
    first = {identity for plan in method.plans(model, lambda: channels) for identity in plan.removed}
    assert first and method.removed[-1] == 0 and method.frozen == {}
    period(method, model, channels)
    second = list(method.plans(model, lambda: channels))
    assert not first & {identity for plan in second for edit in plan.edits for identity in edit.channels}
