"""From scores to plans: ratios, rounding, allocation, targets, and refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import ModelError, UsageError
from compressor.graph import capture
from compressor.profiling.timetable import preferred_multiple
from compressor.pruning.oneshot import decide
from compressor.pruning.scores import Scores
from compressor.pruning.selection import select
from compressor.pruning.settings import PruneSettings, check, resolved
from compressor.pruning.target import cuts, units
from compressor.surgery import operate_
from tests.pruning.nets import NETS, Grouped, Plain, Residual

PLAIN = Plain()
CHANNELS = capture(PLAIN, PLAIN.example)
SCORES = Scores({"one": np.array([8.0, 7, 6, 5, 4, 3, 2, 1]), "two": np.array([1.1, 2.1, 3.1, 4.1, 5.1, 6.1])})


def counts(selection):
    return {edit.group: len(edit.channels) for edit in selection.plan.edits}


def picked(settings, channels=CHANNELS, scores=SCORES):
    return select(channels, scores, resolved(settings, has_inputs=False))


def test_uniform_allocation_takes_the_lowest_of_every_group():
    selection = picked(PruneSettings(ratio=0.5, round_to=1))
    assert counts(selection) == {"one": 4, "two": 3}
    by_group = {edit.group: set(edit.channels) for edit in selection.plan.edits}
    assert by_group["one"] == set(CHANNELS.group("one").ids[4:].tolist())
    assert by_group["two"] == set(CHANNELS.group("two").ids[:3].tolist())


def test_global_allocation_takes_the_lowest_of_all():
    selection = picked(PruneSettings(ratio=0.25, allocate="global", round_to=1))  # 3.5 of 14: scores 1, 1.1, 2
    assert counts(selection) == {"one": 2, "two": 1}


def test_global_allocation_spreads_equal_scores_over_the_layers():
    equal = Scores({"one": np.ones(8), "two": np.ones(6)})
    assert counts(picked(PruneSettings(ratio=0.5, allocate="global", round_to=1), scores=equal)) == {"one": 4, "two": 3}


def test_a_ratio_never_takes_more_than_asked():
    assert counts(picked(PruneSettings(ratio=0.49, round_to=1))) == {"one": 3, "two": 2}


@pytest.mark.parametrize(("ratio", "left"), [(0.1, 8), (0.3, 8), (0.5, 4), (0.8, 4), (0.99, 4)])
def test_rounding_leaves_multiples_and_never_takes_more(ratio, left):
    wide = PruneSettings(ratio=ratio, round_to=4, ratio_for=(("two", 0.2),))
    gone = counts(picked(wide)) if left < 8 else {}
    if left == 8:
        with pytest.raises(UsageError, match="nothing was pruned"):
            picked(wide)
    assert 8 - gone.get("one", 0) == left


def test_an_odd_width_is_rounded_down_to_a_multiple_first():
    group = CHANNELS.group("two")  # 6 wide
    sizes = [group.size]
    for unit in units(group, SCORES.values["two"], cuts(group, CHANNELS, 4)):
        sizes.append(sizes[-1] - len(unit.ids))
    assert sizes == [6, 4]


def test_rounding_counts_filters_where_a_layer_holds_a_channel_often():
    model = Grouped()
    channels = capture(model, model.example)
    group = channels.group("first")
    queue = units(group, np.arange(4.0), cuts(group, channels, 8))
    assert [len(unit.ids) for unit in queue] == [2]  # 4 channels are 16 filters: 8 filters are 2 channels


def test_min_channels_stay():
    assert counts(picked(PruneSettings(ratio=0.9, min_channels=5, round_to=1))) == {"one": 3, "two": 1}


def test_a_ratio_for_one_layer_leaves_the_others_their_own():
    assert counts(picked(PruneSettings(ratio=0.5, round_to=1, ratio_for=(("two", 0.17),)))) == {"one": 4, "two": 1}
    assert counts(picked(PruneSettings(ratio=0.5, ratio_for=(("t*", 0.0),)))) == {"one": 4}


def test_a_ratio_for_nobody_is_refused_with_the_names():
    with pytest.raises(UsageError, match=r"'layer9\.\*'.*one, two"):
        picked(PruneSettings(ratio_for=(("layer9.*", 0.2),)))


def test_a_ratio_for_frozen_layers_is_refused_with_the_reason():
    with pytest.raises(UsageError, match="output of the model"):
        picked(PruneSettings(ratio_for=(("out", 0.2),)))


def test_kept_layers_stay():
    channels = capture(PLAIN, PLAIN.example, keep=("one",))
    assert list(counts(picked(PruneSettings(), channels))) == ["two"]


def test_what_a_plan_leaves_is_what_surgery_leaves():
    for build in NETS.values():
        model = build()
        channels = capture(model, model.example)
        selection = decide(model, channels, PruneSettings(ratio=0.5))
        after = operate_(model, selection.plan, channels)
        assert after.macs() == selection.macs
        assert sum(parameter.numel() for parameter in model.parameters()) == selection.params


@pytest.mark.parametrize("allocate", ["uniform", "global"])
@given(share=st.floats(0.15, 0.95))
def test_a_target_is_met_within_one_percent_or_says_how_near_it_got(allocate, share):
    model = Wide.model
    selection = decide(model, Wide.channels, PruneSettings(target_macs=share, allocate=allocate, round_to=1))
    off = abs(selection.macs / (share * Wide.channels.macs()) - 1)
    assert (off <= 0.01) == (not selection.notes)
    assert off < 0.05


class Wide:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(24, 48, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(48, 10),
    )
    channels = capture(model, torch.zeros(1, 3, 8, 8))


def test_an_absolute_target_is_a_number_of_macs():
    wanted = int(Wide.channels.macs() * 0.6)
    one = decide(Wide.model, Wide.channels, PruneSettings(target_macs=wanted))
    other = decide(Wide.model, Wide.channels, PruneSettings(target_macs=0.6))
    assert one.plan == other.plan


def test_a_target_that_granularity_cannot_meet_says_how_near_it_got():
    selection = picked(PruneSettings(target_macs=0.85, round_to=4))
    assert "not met within 1%" in selection.notes[0]
    assert f"{selection.macs:,}" in selection.notes[0]


def test_a_target_is_met_by_other_than_equal_shares_where_rounding_allows_no_other():
    """Multiples of 8 of 24 and 48 channels: equal shares are off, the nearest below the target are not."""
    wanted = 0.45
    found = {
        (a, b): Wide.channels.macs(
            [*Wide.channels.group("0").ids[a:].tolist(), *Wide.channels.group("2").ids[b:].tolist()]
        )
        for a in (8, 16, 24)
        for b in (8, 16, 24, 32, 40, 48)
    }
    shares = [macs / Wide.channels.macs() for macs in found.values()]
    best = min((share > wanted * 1.01, abs(share - wanted), share) for share in shares)[2]
    selection = decide(Wide.model, Wide.channels, PruneSettings(target_macs=wanted, round_to=8))
    assert selection.macs / Wide.channels.macs() == pytest.approx(best)


def test_a_target_that_wide_multiples_do_not_reach_takes_narrower_ones():
    with_one = decide(Wide.model, Wide.channels, PruneSettings(target_macs=0.12, round_to=1))
    selection = decide(Wide.model, Wide.channels, PruneSettings(target_macs=0.12, round_to=16))
    assert with_one.round_to == 1 and 1 < selection.round_to < 16
    assert selection.macs / Wide.channels.macs() < 0.125
    widths = {name: Wide.channels.group(name).size - gone for name, gone in counts(selection).items()}
    assert all(width % selection.round_to == 0 for width in widths.values())
    assert "with multiples of 16 the target is not met" in selection.notes[0]


@given(share=st.floats(0.15, 0.95))
def test_widths_that_suit_the_chip_meet_every_target_that_single_channels_meet(share):
    one, auto = (
        decide(Wide.model, Wide.channels, PruneSettings(target_macs=share, round_to=each)) for each in (1, "auto")
    )
    assert auto.off <= one.off
    widths = {name: Wide.channels.group(name).size - gone for name, gone in counts(auto).items()}
    assert all(width % min(auto.round_to, {"0": 8, "2": 16}[name]) == 0 for name, width in widths.items())


def test_narrow_layers_have_widths_to_choose_from():
    """Half of the channels can always go, and where there are enough of them widths are whole blocks."""
    multiple = preferred_multiple()[0]
    wide = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8 * multiple, 1), torch.nn.ReLU(), torch.nn.Conv2d(8 * multiple, 4, 1)
    )
    channels = capture(wide, torch.zeros(1, 3, 4, 4))
    assert counts(decide(wide, channels, PruneSettings(ratio=0.3)))["0"] == 2 * multiple
    assert counts(picked(PruneSettings(ratio=0.6))) == {"one": 4, "two": 2}


def test_a_target_counts_what_single_layers_ratios_take():
    selection = decide(Wide.model, Wide.channels, PruneSettings(target_macs=0.4, round_to=1, ratio_for=(("0", 0.5),)))
    assert counts(selection)["0"] == 12
    assert selection.macs == pytest.approx(0.4 * Wide.channels.macs(), rel=0.01)


def test_a_target_out_of_reach_says_what_remains():
    with pytest.raises(ModelError, match=r"cannot be reached.*remain"):
        decide(Wide.model, Wide.channels, PruneSettings(target_macs=0.3, min_channels=20))


@pytest.mark.parametrize("target", [1.0, 10**9])
def test_a_target_that_is_met_already_is_refused(target):
    with pytest.raises(UsageError, match="ask for less"):
        decide(Wide.model, Wide.channels, PruneSettings(target_macs=target))


def test_nothing_pruned_is_an_error_with_its_reasons():
    with pytest.raises(UsageError, match=r"nothing was pruned: a ratio of 0\.1 .* widest .* 8 channels.*frozen: out"):
        picked(PruneSettings(ratio=0.1))


def test_a_model_without_free_layers_says_why():
    channels = capture(PLAIN, PLAIN.example, keep=("*",))
    with pytest.raises(ModelError, match=r"every layer is frozen; one \(kept by request\)"):
        decide(PLAIN, channels, PruneSettings())


def test_groups_that_gave_nothing_are_named():
    selection = picked(PruneSettings(ratio=0.15, round_to=1))
    assert list(counts(selection)) == ["one"]
    assert "leave it no channel" in selection.refused["two"]


def test_refusals_of_the_method_are_passed_on():
    model = Residual()
    selection = decide(model, capture(model, model.example), PruneSettings(method="bn-scale"))
    assert "no normalisation layer" in selection.refused["inner"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            PruneSettings(method="bnscale"),
            r"no method 'bnscale' \(did you mean bn-scale\?\); the methods are obs, l1, l2",
        ),
        (PruneSettings(ratio=1.0), "from 0 to below 1"),
        (PruneSettings(ratio=-0.1), "from 0 to below 1"),
        (PruneSettings(ratio=float("nan")), "from 0 to below 1"),
        (PruneSettings(ratio_for=(("a", 2.0),)), "the ratio for a is 2"),
        (PruneSettings(target_macs=0.0), "give a share"),
    ],
    ids=["method", "ratio-high", "ratio-low", "ratio-nan", "ratio-for", "target"],
)
def test_settings_out_of_range_are_usage_errors(settings, complaint):
    with pytest.raises(UsageError, match=complaint):
        check(settings, has_data=True)


def test_a_target_that_one_channel_would_miss_by_more_is_a_usage_error():
    with pytest.raises(UsageError, match="nearer to the target than with any channel gone"):
        picked(PruneSettings(target_macs=0.9999))


def test_a_method_that_needs_data_says_which_do_not():
    with pytest.raises(UsageError, match=r"taylor needs data.*l1, l2, bn-scale, fpgm, random"):
        decide(PLAIN, CHANNELS, PruneSettings(method="taylor"))
