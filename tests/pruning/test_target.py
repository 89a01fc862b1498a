"""Rounding at the end: widths are multiples, the multiply-adds keep to the limit, doubled channels change nothing."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.graph import capture
from compressor.pruning import target
from compressor.pruning.target import rounded
from compressor.surgery import operate_

EXAMPLE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def never_off(plan):
    return 0.0


def net(first: int, second: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, first, 3), nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * second, 5)).double().eval()


@settings(max_examples=25)
@given(first=st.integers(3, 40), second=st.integers(3, 40), share=st.floats(0.5, 1.5))
def test_widths_are_the_nearest_multiples_that_the_limit_allows(first, second, share):
    model = net(first, second)
    channels = capture(model, EXAMPLE)
    limit = share * channels.macs()
    before = model(EXAMPLE)

    def fits(plan):
        return operate_(copy.deepcopy(model), plan, channels).macs() <= limit

    plan = rounded(model, channels, channels.free, 8, fits, never_off)
    assert all(torch.equal(one, other) for one, other in zip(before, model(EXAMPLE)))
    after = operate_(model, plan, channels)
    below = net(*(size - size % 8 if size > 8 else size for size in (first, second)))
    least = capture(below, EXAMPLE).macs()
    assert least <= after.macs() <= max(limit, least)
    for group, size in (("0", first), ("3", second)):
        now = after.group(group).size
        assert now % 8 == 0 or (now == size < 8)
        assert now in {size - size % 8, size + -size % 8, size}
    if {edit.kind for edit in plan.edits} == {"insert"}:
        torch.testing.assert_close(model(EXAMPLE), before)


def test_narrow_layers_get_narrow_multiples():
    model = net(5, 24)
    channels = capture(model, EXAMPLE)
    after = operate_(model, rounded(model, channels, channels.free, "auto", lambda _: True, never_off), channels)
    assert after.group("0").size == 6 and after.group("3").size % 8 == 0


def test_multiples_are_smaller_where_larger_ones_would_take_far_more_than_asked(monkeypatch):
    monkeypatch.setattr(target, "preferred_multiple", lambda: (16, "of this test"))
    model = net(24, 47)
    channels = capture(model, EXAMPLE)

    def after(plan):
        return operate_(copy.deepcopy(model), plan, channels).macs()

    def off(plan):
        return 1 - after(plan) / channels.macs()

    def fits(plan):
        return after(plan) <= channels.macs()

    coarse = rounded(model, channels, channels.free, "auto", fits, never_off)
    fine = rounded(model, channels, channels.free, "auto", fits, off)
    assert operate_(copy.deepcopy(model), coarse, channels).group("3").size == 32 and off(coarse) > target.FAR
    assert operate_(copy.deepcopy(model), fine, channels).group("3").size == 44 and off(fine) < target.FAR
