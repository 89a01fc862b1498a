"""Targets and the limit to a plan's harm, on their own."""

import pytest

from compressor.errors import UsageError
from compressor.graph import capture
from compressor.runs.goals import Guard, Target
from compressor.runs.settings import GoalSettings
from compressor.surgery import Insert, Plan, Prune
from tests.pruning.nets import Plain


@pytest.fixture
def channels():
    model = Plain()
    return capture(model, model.example)


def removal(channels, count):
    ids = channels.group("one").ids.tolist()
    return Plan(tuple(Prune("one", (identity,), "test") for identity in ids[:count]), 4)


def test_shares_and_numbers_say_the_same(channels):
    share = Target.of(GoalSettings(target_macs=0.5, target_params=0.5), channels)
    number = Target.of(GoalSettings(target_macs=channels.macs() / 2, target_params=channels.params() / 2), channels)
    assert share == number


def test_a_plan_is_cut_to_the_fewest_edits_that_meet_the_target(channels):
    target = Target.of(GoalSettings(target_macs=0.6), channels)
    whole = removal(channels, 7)
    part = target.trimmed(whole, channels)
    assert part.edits == whole.edits[: len(part.edits)] and part.period == 4
    assert target.met(channels, part.removed)
    assert not target.met(channels, removal(channels, len(part.edits) - 1).removed)


def test_a_plan_that_does_not_meet_the_target_is_left_whole(channels):
    target = Target.of(GoalSettings(target_macs=0.1), channels)
    assert target.trimmed(removal(channels, 2), channels) == removal(channels, 2)
    assert "were asked for" in target.shortfall(channels)


def test_without_a_target_nothing_is_cut_and_nothing_missing(channels):
    target = Target.of(GoalSettings(), channels)
    assert not target.met(channels) and target.shortfall(channels) is None
    assert target.trimmed(removal(channels, 3), channels) == removal(channels, 3)


def test_both_targets_have_to_be_met(channels):
    plan = removal(channels, 4)
    macs, params = channels.macs(plan.removed), channels.params(plan.removed)
    assert Target(macs, params).met(channels, plan.removed)
    assert not Target(macs - 1, params).met(channels, plan.removed)
    assert not Target(macs, params - 1).met(channels, plan.removed)


def test_what_is_met_takes_no_more_edits(channels):
    target = Target(float(channels.macs()), None)
    grow = Plan((Insert("one", int(channels.group("one").ids[0]), "test"),), 2)
    assert target.trimmed(grow, channels) == Plan((), 2)


@pytest.mark.parametrize("settings", [{"target_macs": 0.0}, {"target_params": -3.0}, {"target_macs": 1.0}])
def test_targets_that_make_no_sense_are_refused(settings, channels):
    with pytest.raises(UsageError, match="`target_"):
        Target.of(GoalSettings(**settings), channels)


def test_the_guard_compares_each_plan_with_the_network_before_it():
    measured = iter([0.90, 0.88, 0.84, 0.89, 0.87])
    guard = Guard(0.03, lambda: next(measured))
    guard.ready()
    assert guard.passes()[0]  # 0.90 -> 0.88
    guard.ready()
    passed, text = guard.passes()  # 0.88 -> 0.84
    assert not passed and text == "validation top-1 fell from 88.0% to 84.0%"
    guard.trained()
    guard.ready()
    assert guard.passes()[0]  # 0.89 -> 0.87


def test_without_a_limit_nothing_is_measured():
    guard = Guard(None, lambda: 1 / 0)
    guard.ready()
    assert guard.passes() == (True, "")
