"""Which course a network takes in a user's loop, by what a person asked of `compressor.Pruner`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.price import Goal
from compressor.pruning.reconstruction import first_batches, inputs_of
from compressor.pruning.scores import Given, Score, l1
from compressor.pruning.selection import goals_of, select
from compressor.pruning.settings import BLOCKS, PruneSettings, check, looks_at_inputs, resolved
from compressor.runs.course import Network
from compressor.runs.goals import Target
from compressor.runs.gradual import Gradual, Looks
from compressor.runs.latency_goal import goal_in_ms
from compressor.runs.periods import Periods
from compressor.runs.phases import check_period
from compressor.runs.settings import GoalSettings
from compressor.settings import filled, settings_of

_ROUNDS = 10  # of a criterion that is applied gradually, where nothing else is said


@dataclass(frozen=True)
class Asked:
    """A course, the settings that it follows from, and over how many steps of the loop it goes."""

    course: Periods | Gradual
    settings: dict[str, Any]
    steps: int
    epochs: int = 1  # equal parts of the steps


def by_adapnet(
    network: Network,
    example: Any,
    base: AdapNetSettings | None,
    given: Mapping[str, Any],
    *,
    steps: int | None,
    classes: int | None,
    seed: int,
) -> Asked:
    """AdapNet's second phase; `given` are settings of it by name, and goals.

    Raises UsageError for settings that are unknown or out of range, or too few steps.
    """
    if steps is None:
        raise UsageError("`steps` is missing: over how many steps of the optimizer, such as 30 * len(loader)")
    given = dict(given)
    preset = given.pop("preset", "paper")
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}: these are {', '.join(PRESETS)}")
    names = settings_of(GoalSettings()).keys() - {"undo_drop", "fill"}
    known = {name: given.pop(name) for name in sorted(names) if name in given}
    settings, goals = filled(base or PRESETS[preset], given), filled(GoalSettings(), known)
    if steps < settings.max_epochs:
        raise UsageError(f"`steps` is {steps}, and has to be at least `max_epochs`, which is {settings.max_epochs}")
    epoch = steps // settings.max_epochs
    check_period(settings, epoch)
    model, channels = network.model, network.channels
    method = AdapNet(settings, classes=classes, steps_per_epoch=epoch, seed=seed)
    method.adopt(model, channels)
    method.check_units(channels)
    target = Target.of(goals, channels, goal_in_ms(model, example, channels, goals))
    course = Periods(network, method, target, round_to=goals.round_to)
    return Asked(course, {**asdict(settings), **known}, steps, settings.max_epochs)


def by_criterion(
    network: Network,
    example: Any,
    choice: PruneSettings,
    score: Score | None,
    *,
    steps: int | None,
    every: int | None,
    data: Any,
    loss: Callable[[nn.Module, Any], Tensor] | None,
) -> Asked:
    """Rounds of a criterion, all at once where no `steps` are given; `score` is the user's own.

    Raises UsageError for settings that make no sense, or what the criterion lacks.
    """
    choice = resolved(choice, has_inputs=data is not None)
    if choice.method in BLOCKS:
        raise UsageError(f"{choice.method} makes new layers, which the optimizer lacks: call prune_ before the loop")
    check(choice, has_data=data is not None or choice.method == "taylor")
    if looks_at_inputs(choice) and data is None:
        raise UsageError(f'`data` is missing: allocate="{choice.allocate}" looks at batches')
    if loss is not None and (choice.method != "taylor" or data is None):
        raise UsageError("`loss` is for method taylor, with `data` to take it on: leave it out, or give both")
    steps = steps or 1
    if every is not None and every > steps:
        raise UsageError(f"`every` is {every}, and there are only {steps} `steps`")
    goal = goal_in_ms(network.model, example, network.channels, choice)
    _check_reached(network, choice, goal)
    batches = [] if data is None else first_batches(data, example, choice.score_images)
    looks = Looks(
        score,
        inputs_of(batches, example, network.model, torch.device("cpu")) if batches else (),
        batches if loss is not None or score is not None else (),
        loss,
    )
    price = None if goal is None else goal.price
    course = Gradual(network, example, choice, steps, every or max(1, steps // _ROUNDS), looks, price)
    return Asked(course, asdict(choice), steps)


def _check_reached(network: Network, choice: PruneSettings, goal: Goal | None) -> None:
    """Raise what the last round would: a target that cannot be reached, a layer that is not there."""
    channels = network.channels
    goals = [*goals_of(channels, choice), *([] if goal is None else [goal])]
    select(channels, l1(network.model, channels, Given()), replace(choice, allocate="uniform"), None, goals)
