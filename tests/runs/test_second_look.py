"""Channels are judged again on the way: against a slow version that cuts the network and captures it anew."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compressor.graph import capture
from compressor.pruning.consumers import consumers
from compressor.pruning.obs import calibrated, curves
from compressor.pruning.oneshot import decide, rank
from compressor.pruning.reconstruction import reconstruct_
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings
from compressor.runs import second_look
from compressor.runs.second_look import ranked
from compressor.surgery import Plan, Prune, operate_


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.outer(self.inner(x).relu())).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    images = torch.randn(192, 3, 9, 9)
    model = Block().eval()
    return model, capture(model, images[:1]), [images]


def choice(**given):
    return PruneSettings(method=given.pop("method", "obs"), allocate="error", round_to=1, **given)


@pytest.mark.parametrize("method", ["obs", "l1"])
def test_curves_go_on_with_those_of_the_network_half_way(net, method):
    model, channels, inputs = net
    before = copy.deepcopy(model.state_dict())
    settings = choice(method=method, target_macs=0.4)
    first, found = (judge(model, channels, settings, Given(inputs=inputs)) for judge in (rank, ranked))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    gone = {name: [*_shared(first.curves[name].ids, each.ids, first.curves[name].errors, each.errors)]
            for name, each in found.curves.items()}  # fmt: skip
    assert any(gone.values()) and not all(len(each) > channels.group(name).size // 2 for name, each in gone.items())

    plan = Plan(tuple(Prune(name, tuple(sorted(each)), "test") for name, each in gone.items() if each))
    assert channels.macs(plan.removed) == pytest.approx(0.4**0.5 * channels.macs(), rel=0.1)
    small = copy.deepcopy(model)
    operate_(small, plan, channels)
    reconstruct_(small, model, channels, plan, inputs)
    anew = capture(small, inputs[0][:1])
    orders = None if method == "obs" else {
        name: anew.group(name).ids[np.argsort(np.argsort(each.ids[len(gone[name]) :]))]
        for name, each in first.curves.items()
    }  # fmt: skip
    slow = calibrated(small, curves(small, anew, consumers(small, anew, inputs), orders), inputs)
    for name, each in found.curves.items():
        count = len(gone[name])
        left = [identity for identity in channels.group(name).ids.tolist() if identity not in gone[name]]
        places = dict(zip(anew.group(name).ids.tolist(), left, strict=True))
        assert [places[identity] for identity in slow[name].ids.tolist()] == each.ids[count:].tolist()
        np.testing.assert_allclose(each.errors[count:] - each.errors[count], slow[name].errors, rtol=1e-3, atol=1e-9)


def _shared(ids, other, errors, others):
    """Channels in front that both curves have at the same errors."""
    for one, two, error, with_it in zip(ids.tolist(), other.tolist(), errors[1:], others[1:], strict=False):
        if one != two or error != with_it:
            return
        yield one


@pytest.mark.parametrize("target", [0.4, 0.15])
def test_the_further_the_target_the_more_looks_each_at_an_even_share_of_the_way(net, target, monkeypatch):
    seen = []

    def reconstruct(small, model, channels, plan, *given):
        seen.append(channels.macs(plan.removed) / channels.macs())
        return reconstruct_(small, model, channels, plan, *given)

    monkeypatch.setattr(second_look, "reconstruct_", reconstruct)
    model, channels, inputs = net
    found = ranked(model, channels, choice(target_macs=target), Given(inputs=inputs))
    looks = {0.4: 2, 0.15: 3}[target]
    assert seen == pytest.approx([target ** (look / looks) for look in range(1, looks)], rel=0.15)
    for name, each in found.curves.items():
        assert sorted(each.ids.tolist()) == sorted(channels.group(name).ids.tolist())
        assert np.all(np.diff(each.errors) >= -1e-9)


@pytest.mark.parametrize(
    "given", [{"target_macs": 0.9}, {"ratio": 0.1}, {"target_macs": 1e-12}], ids=["near", "near ratio", "unreachable"]
)
def test_one_look_is_enough_where_the_target_is_near_or_out_of_reach(net, given, monkeypatch):
    monkeypatch.setattr(second_look, "operate_", lambda *_: pytest.fail("cut for nothing"))
    model, channels, inputs = net
    settings = choice(**given)
    first, found = (judge(model, channels, settings, Given(inputs=inputs)) for judge in (rank, ranked))
    assert all(np.array_equal(each.errors, found.curves[name].errors) for name, each in first.curves.items())


def test_what_is_not_judged_by_errors_is_judged_once(net):
    model, channels, inputs = net
    settings = PruneSettings(method="l1", allocate="uniform", target_macs=0.4)
    assert ranked(model, channels, settings, Given(inputs=inputs)).curves is None


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.999])
def test_groups_that_lose_all_but_one_channel_are_no_reason_to_stop(net, ratio):
    model, channels, inputs = net
    found = decide(model, channels, choice(ratio=ratio), Given(inputs=inputs), judge=ranked)
    assert found.macs < channels.macs()


@pytest.mark.parametrize(("side", "refitted"), [(9, 192), (256, 32)])
def test_of_large_images_fewer_refit_the_copy_that_is_judged(side, refitted, net, monkeypatch):
    model, channels, _ = net
    seen = []
    monkeypatch.setattr(second_look, "reconstruct_", lambda *given: seen.append(sum(map(len, given[4]))))
    monkeypatch.setattr(second_look, "consumers", lambda *given: pytest.fail("enough"))
    images = list(torch.zeros(1, 3, side, side).expand(192, -1, -1, -1).split(16))
    first = rank(model, channels, choice(target_macs=0.4), Given(inputs=net[2]))
    monkeypatch.setattr(second_look, "rank", lambda *given: first)
    with pytest.raises(pytest.fail.Exception):
        ranked(model, channels, choice(target_macs=0.4), Given(inputs=images))
    assert seen == [refitted]
