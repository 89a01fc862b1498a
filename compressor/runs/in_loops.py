"""The course that the arguments of a `compressor.Pruner` ask for: AdapNet's periods, or a criterion's rounds."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.schedule import check_period
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.adapnet.settings import resolved as named_preset
from compressor.pruning.price import Goal
from compressor.pruning.reconstruction import first_batches, inputs_of
from compressor.pruning.scores import Given, Score, l1
from compressor.pruning.selection import goals_of, select
from compressor.pruning.settings import BLOCKS, PruneSettings, check, looks_at_inputs, resolved
from compressor.runs.course import Asked, Network
from compressor.runs.goals import Target
from compressor.runs.gradual import ROUNDS, Gradual, Looks
from compressor.runs.latency_goal import goal_in_ms
from compressor.runs.periods import Periods
from compressor.runs.settings import GoalSettings
from compressor.settings import filled, settings_of


def by_adapnet(
    network: Network,
    base: AdapNetSettings | None,
    given: Mapping[str, Any],
    *,
    steps: int | None,
    data: Any,
    classes: int | None,
    seed: int,
) -> Asked[Periods]:
    """AdapNet's second phase; `given` are settings of it by name, and goals. With `data` layers are refitted by it.

    Raises UsageError for settings that are unknown or out of range, too few steps, or data that are missing or of no
    use.
    """
    if steps is None:
        raise UsageError("`steps` is missing: over how many steps of the optimizer, such as 30 * len(loader)")
    given = dict(given)
    if base is not None and "preset" in given:
        raise UsageError("`preset` and an object of settings both say how AdapNet works: leave one of them out")
    chosen = given.pop("preset", "auto")
    if chosen not in ("auto", *PRESETS):
        raise UsageError(f"there is no preset {chosen!r}: these are {', '.join(PRESETS)}")
    names = settings_of(GoalSettings()).keys() - {"undo_drop", "fill"}
    known = {name: given.pop(name) for name in sorted(names) if name in given}
    start = base or replace(PRESETS[named_preset(chosen, trained=True)], reconstruct=data is not None)
    settings, goals = filled(start, given), filled(GoalSettings(), known)
    if settings.reconstruct != (data is not None):
        raise UsageError(
            "`data` is missing: `reconstruct` refits layers by images, without labels" if data is None
            else "`data` is what `reconstruct` refits layers by, which is off: leave one of them out"
        )  # fmt: skip
    if steps < settings.max_epochs:
        raise UsageError(f"`steps` is {steps}, and has to be at least `max_epochs`, which is {settings.max_epochs}")
    epoch = steps // settings.max_epochs
    check_period(settings, epoch)
    model, channels, example = network.model, network.channels, network.example
    method = AdapNet(settings, classes=classes, steps_per_epoch=epoch, seed=seed)
    method.adopt(model, channels)
    method.check_units(channels)
    target = Target.of(goals, channels, goal_in_ms(model, example, channels, goals))
    host = torch.device("cpu")
    inputs = () if data is None else inputs_of(first_batches(data, example, 0), example, model, host)
    course = Periods(network, method, target, round_to=goals.round_to, inputs=inputs)
    return Asked(course, {**asdict(settings), **known}, steps, settings.max_epochs)


def by_criterion(
    network: Network,
    choice: PruneSettings,
    score: Score | None,
    *,
    steps: int | None,
    every: int | None,
    data: Any,
    loss: Callable[[nn.Module, Any], Tensor] | None,
) -> Asked[Gradual]:
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
    goal = goal_in_ms(network.model, network.example, network.channels, choice)
    _check_reached(network, choice, goal)
    batches = [] if data is None else first_batches(data, network.example, choice.score_images)
    looks = Looks(
        score,
        inputs_of(batches, network.example, network.model, torch.device("cpu")) if batches else (),
        batches if loss is not None or score is not None else (),
        loss,
    )
    price = None if goal is None else goal.price
    course = Gradual(network, choice, steps, every or max(1, steps // ROUNDS), looks, price)
    return Asked(course, asdict(choice), steps)


def _check_reached(network: Network, choice: PruneSettings, goal: Goal | None) -> None:
    """Raise what the last round would: a target that cannot be reached, a layer that is not there."""
    channels = network.channels
    goals = [*goals_of(channels, choice), *([] if goal is None else [goal])]
    select(channels, l1(network.model, channels, Given()), replace(choice, allocate="uniform"), None, goals)
