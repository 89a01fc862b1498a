"""Prices while channels go, against the channels' own counts; goals, one and several."""

import copy

import pytest
import torch
from torch import nn

from compressor.errors import ModelError, UsageError
from compressor.graph import capture
from compressor.profiling.costs import profile
from compressor.pruning.allocate import Widths
from compressor.pruning.oneshot import decide
from compressor.pruning.price import Goal, Price, Term, combined, macs_price, memory_prices, scaled, size_price
from compressor.pruning.settings import PruneSettings
from compressor.surgery import operate_
from tests.equivalence import half_plan
from tests.networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_prices_are_the_channels_own_counts(name: str) -> None:
    model = NETWORKS[name]()
    channels = capture(model, model.example())
    removed = half_plan(channels).removed
    macs, size = macs_price(channels), size_price(channels)
    assert (macs.whole(), macs.without(removed)) == (channels.macs(), channels.macs(removed))
    assert size.whole() == pytest.approx(4e-6 * channels.params())
    assert size.without(removed) == pytest.approx(4e-6 * channels.params(removed))
    widths = Widths(channels, size)
    for number, group in enumerate(channels.free):
        gone = group.size // 2
        expected = 4e-6 * (channels.params() - channels.params(group.ids[:gone].tolist()))
        assert widths.saved(number, gone) == pytest.approx(expected)


@pytest.fixture(scope="module")
def wide():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return model, capture(model, torch.zeros(1, 3, 16, 16))


def test_a_target_of_megabytes_is_met(wide):
    model, channels = wide
    whole = size_price(channels).whole()
    chosen = decide(model, channels, PruneSettings(target_mb=0.5 * whole, round_to=1))
    assert 4e-6 * chosen.params == pytest.approx(0.5 * whole, rel=0.01) and not chosen.notes


@pytest.mark.parametrize("name", sorted(NETWORKS)[::6])
def test_what_lives_at_once_is_what_a_profile_of_the_network_finds(name):
    model = NETWORKS[name]().float().eval()
    example = model.example()
    channels = capture(model, example)
    prices, plan = memory_prices(channels), half_plan(channels)
    for removed in ((), plan.removed):
        found = max(price.without(removed) for price in prices)
        if removed:
            after = operate_(model, plan, channels)
            assert max(price.whole() for price in memory_prices(after)) == pytest.approx(found)
        assert 1e6 * found == pytest.approx(profile(model, example, layers=False).activation_bytes)


def test_a_target_of_memory_is_met(wide):
    model, channels = copy.deepcopy(wide[0]), wide[1]
    example = torch.zeros(1, 3, 16, 16)
    peak = profile(model, example).activation_bytes / 1e6
    with pytest.raises(UsageError, match="no more than the target of 1 MB of activations"):
        decide(model, channels, PruneSettings(target_ram=1.0))
    chosen = decide(model, channels, PruneSettings(target_ram=0.6 * peak, round_to=1))
    operate_(model, chosen.plan, channels)
    left = profile(model, example).activation_bytes / 1e6
    assert 0.5 * peak < left <= 0.606 * peak
    assert chosen.notes == (f"{left:.3g} MB of activations of one image live at once, {peak:.3g} MB before",)


def test_of_several_targets_all_are_met(wide):
    model, channels = wide
    whole = size_price(channels).whole()
    for share, macs in ((0.3, 0.8), (0.8, 0.3), (0.5, 0.5)):
        chosen = decide(model, channels, PruneSettings(target_mb=share * whole, target_macs=macs, round_to=1))
        assert 4e-6 * chosen.params <= 1.01 * share * whole and chosen.macs <= 1.01 * macs * channels.macs()
        assert not chosen.notes


def test_a_combined_price_is_in_shares_of_what_is_to_go():
    ids = torch.arange(4).numpy()
    one, two = Price("ms", (Term((ids,), lambda n: 2.0 * n),)), Price("MB", (Term((ids,), lambda n: 1.0 * n),))
    found = combined([Goal(one, 4.0), Goal(two, 1.0)])
    assert found.whole() - found.without([0]) == pytest.approx(2 / 4 + 1 / 3)
    assert combined([]) is None and combined([Goal(one, 4.0)]) is one
    assert scaled(Price("ms", one.terms, 3.0), 2.0).without([0]) == pytest.approx(2 * (6 + 3))


def test_what_cannot_be_reached_says_how_far_it_goes_and_what_stays(wide):
    model, channels = wide
    with pytest.raises(ModelError, match=r"0\.001 MB .* cannot be reached.*MB \(.*\) remain.*frozen: 6: output"):
        decide(model, channels, PruneSettings(target_mb=0.001, min_channels=8))
    with pytest.raises(UsageError, match=r"no more than the target of 1 MB"):
        decide(model, channels, PruneSettings(target_mb=1.0))
