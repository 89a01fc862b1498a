"""AdapNet's clocks against the numbers of the paper's text and tables."""

from dataclasses import replace

import pytest

from compressor.pruning.adapnet.schedule import (
    beta,
    first_epoch,
    milestones,
    period_steps,
    recording_steps,
    should_stop,
    startup_epochs,
)
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.training.schedule import lr_at
from compressor.training.settings import TrainSettings

PAPER = PRESETS["paper"]


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.90), (4, 0.90), (5, 0.84), (30, 0.54), (59, 0.24), (60, 0.18), (100, 0.18)]
)
def test_beta_falls_as_in_table_2(epoch: int, expected: float) -> None:
    assert beta(PAPER, epoch) == pytest.approx(expected)


@pytest.mark.parametrize("max_epochs", [1, 3, 12, 24, 60])
def test_beta_of_a_short_run_reaches_the_floor_or_takes_a_step_every_epoch(max_epochs: int) -> None:
    settings = replace(PAPER, max_epochs=max_epochs)
    assert beta(settings, max(max_epochs, 12)) == pytest.approx(0.18)


def test_recording_steps_end_with_the_period_and_are_evenly_spread() -> None:
    assert recording_steps(150, 8) == (17, 36, 55, 74, 92, 111, 130, 149)
    assert recording_steps(4, 8) == (0, 1, 2, 3)


def test_period_of_the_quick_preset_is_the_papers_share_of_an_epoch() -> None:
    assert period_steps(PAPER, 391) == 150
    quick = PRESETS["quick"]
    assert [period_steps(quick, steps) for steps in (10, 130, 391, 4000)] == [20, 50, 150, 150]


def test_startup_is_skipped_for_a_trained_network_unless_asked_for() -> None:
    assert startup_epochs(PAPER, trained=False) == 50
    assert startup_epochs(PAPER, trained=True) == 0
    assert startup_epochs(replace(PAPER, startup_epochs=3), trained=True) == 3


@pytest.mark.parametrize(("trained", "epoch", "rate"), [(False, 0, 0.025), (False, 15, 0.0125), (True, 0, 0.003125)])
def test_learning_rate_halves_every_15_epochs_of_all_phases(trained: bool, epoch: int, rate: float) -> None:
    start = first_epoch(PAPER, trained=trained)
    settings = TrainSettings(
        epochs=120, lr=PAPER.lr, schedule="step", gamma=0.5, milestones=milestones(PAPER, 120), first_epoch=start
    )
    assert lr_at(settings, start + epoch) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("removed", "epoch", "stops"),
    [
        ([0, 0, 0], 14, False),  # not armed
        ([9, 2, 2], 15, True),
        ([2, 3], 40, False),
        ([2, 2, 3], 40, False),
        ([2], 40, False),  # one period only
        ([9, 9], 60, True),  # the longest it may take
    ],
)
def test_stop_rule_wants_two_poor_periods_after_a_quarter_of_the_epochs(
    removed: list[int], epoch: int, stops: bool
) -> None:
    assert should_stop(AdapNetSettings(), removed, epoch) is stops


@pytest.mark.parametrize(("epochs", "first"), [(4, 1), (5, 2), (6, 2), (9, 3)])
def test_a_quarter_of_the_epochs_is_over_when_it_is_whole(epochs: int, first: int) -> None:
    asked = [should_stop(AdapNetSettings(max_epochs=epochs), [0, 0], epoch) for epoch in range(epochs)]
    assert asked.index(True) == first
