"""Prune a network in anyone's training loop, by one line after the optimizer's step: `compressor.Pruner`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.errors import UsageError
from compressor.exporting.latency import profile
from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.graph.neutral import bare, neutral, reducing, seeded, without_reducer
from compressor.graph.tensors import device_of, named_tensors
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.price import Goal, in_words
from compressor.pruning.reconstruction import first_batches, inputs_of
from compressor.pruning.scores import Given, Score, l1
from compressor.pruning.selection import goals_of, select
from compressor.pruning.settings import BLOCKS, PruneSettings, check, looks_at_inputs, resolved
from compressor.report.environment import device_words, versions
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.report.sections import Section
from compressor.runs.adapnet import section
from compressor.runs.goals import Guard, Target
from compressor.runs.gradual import Gradual
from compressor.runs.latency_goal import goal_in_ms
from compressor.runs.oneshot import check_can_be_edited, check_optimizer, checked
from compressor.runs.own import criterion
from compressor.runs.own import in_words as named
from compressor.runs.periods import Periods
from compressor.runs.phases import check_period
from compressor.runs.results import filters, layer_sizes
from compressor.runs.settings import GoalSettings
from compressor.runs.stages import Callback, silent
from compressor.settings import filled, settings_of
from compressor.training.numerics import seed_everything_

_ROUNDS = 10  # of a criterion that is applied gradually, where nothing else is said


class Pruner:
    """Prunes a network while it is trained in a loop of the user's; the loop stays as it is.

    Parameters stay the same objects, with their hooks and attributes, and so do the optimizer, schedulers, GradScaler
    and wrappers around the model (torch.compile, DistributedDataParallel). Whatever is refused leaves all of them as
    they were. An output that was computed before layers were edited can no longer be backpropagated and says so; a view
    of a parameter made before keeps the old data.

    Args:
        model: the network, or a wrapper around it.
        example: an input as the network takes it, or a tuple or dict of inputs.
        optimizer: the one that trains the network.
        method: "adapnet"; "obs", "l1", "l2", "bn-scale", "fpgm", "taylor" or "random"; "auto": obs with `data`, l1
            without; "FILE.py:score" or a function `(model, channels, given) -> Scores`; or an object of settings,
            AdapNetSettings or PruneSettings.
        ratio: share of the channels that go.
        target_macs: multiply-adds that stay: up to 1 as a share, above as a number.
        target_ms: milliseconds for one image on this machine, in ONNX Runtime or as `runtime="openvino"` says.
        steps: over how many steps of the optimizer the structure changes; 1: all at once, at the first. AdapNet's
            `max_epochs` are equal parts of them.
        every: steps between two prunings by a criterion; a tenth of `steps`. AdapNet has `lsep`.
        data: a loader or another iterable of batches, of which the first are taken now. Layers that read what was
            pruned are refitted by them, "obs" and `allocate="error"` choose by them.
        loss: `(model, batch) -> scalar`, by which "taylor" takes gradients on `data` and not in the loop.
        classes: how many there are, where AdapNet's clusters are to follow from them and not from the widths.
        followers: copies of the network that are edited alike, such as an average of its weights, or a teacher.
        keep: names of layers that stay as they are.
        also: names of methods that are used besides `forward`; a dict gives each an example of its own.
        tell: hears of every change.
        others: by name what else `compressor prune` has flags for; any field stands in an object of settings.

    Raises:
        UsageError: a setting is out of its range, or the method needs what was not given.
        ModelError: the network does not run on the example, or has nothing that may be pruned.

    Example:
        pruner = compressor.Pruner(model, example, optimizer, "adapnet", target_macs=0.5, steps=30 * len(loader))
        for x, y in loader:
            loss = criterion(model(x), y); loss.backward(); optimizer.step(); optimizer.zero_grad()
            pruner.step()
        report = pruner.finish()
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        optimizer: Optimizer,
        method: str | Score | AdapNetSettings | PruneSettings = "auto",
        *,
        ratio: float | None = None,
        target_macs: float | None = None,
        target_ms: float | None = None,
        steps: int | None = None,
        every: int | None = None,
        data: Iterable[Any] | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        classes: int | None = None,
        followers: Sequence[nn.Module] = (),
        keep: str | Iterable[str] = (),
        also: str | Iterable[str] | Mapping[str, Any] = (),
        seed: int = 0,
        tell: Callback = silent,
        **others: Any,
    ) -> None:
        given = {"ratio": ratio, "target_macs": target_macs, "target_ms": target_ms, **others}
        given = {name: value for name, value in given.items() if value is not None}
        self.model, self.optimizer, self.followers = bare(model), optimizer, tuple(map(bare, followers))
        self.done = 0  # calls of `step` so far
        self._wrapper, self._example, self._seed, self._tell = reducing(model), example, seed, tell
        self._steps, every = _positive("steps", steps), _positive("every", every)
        self.closed = self._finished = False
        own = method if isinstance(method, PruneSettings) else PruneSettings()
        keep = (keep,) if isinstance(keep, str) else tuple(keep)
        also = also if isinstance(also, Mapping) else (also,) if isinstance(also, str) else tuple(also)
        with neutral(), _apart(seed):
            with without_reducer(self._wrapper):
                check_can_be_edited(self.model)
            check_optimizer(self.model, optimizer)
            _check_followers(self.model, self.followers)
            self._channels = capture(self.model, example, keep=(*own.keep, *keep), also=also or own.also)
            self._course: Periods | Gradual
            if method == "adapnet" or isinstance(method, AdapNetSettings):
                _refuse("adapnet", {"ratio": ratio, "every": every, "data": data, "loss": loss})
                self._course = self._adapnet(None if isinstance(method, str) else method, given, classes)
            else:
                _refuse("a criterion", {"classes": classes})
                score = criterion(method.method if isinstance(method, PruneSettings) else method)
                if not isinstance(method, PruneSettings):
                    given["method"] = method if isinstance(method, str) else named(method)
                self._course = self._gradual(filled(own, checked(**given, seed=seed)), score, every, data, loss)
            self._before, self._widths = self._measured(), filters(self.model)
        self._parts = [(path, held, dict(held)) for path, held in _parts(self.model)]
        self._course.arm(optimizer)

    def _adapnet(self, base: AdapNetSettings | None, given: dict[str, Any], classes: int | None) -> Periods:
        if self._steps is None:
            raise UsageError("`steps` is missing: over how many steps of the optimizer, such as 30 * len(loader)")
        preset = given.pop("preset", "paper")
        if preset not in PRESETS:
            raise UsageError(f"there is no preset {preset!r}: these are {', '.join(PRESETS)}")
        base = base or PRESETS[preset]
        mine = settings_of(base)
        settings = filled(base, {name: given.pop(name) for name in list(given) if name in mine})
        names = settings_of(GoalSettings()).keys() - {"undo_drop", "fill"}
        known = {name: given.pop(name) for name in sorted(names) if name in given}
        settings = filled(settings, given)  # what is left is unknown
        goals, channels = filled(GoalSettings(), known), self._channels
        self._settings = {**asdict(settings), **known}
        self._epochs = settings.max_epochs
        if self._steps < self._epochs:
            raise UsageError(f"`steps` is {self._steps}, and has to be at least `max_epochs`, which is {self._epochs}")
        epoch = self._steps // self._epochs
        check_period(settings, epoch)
        method = AdapNet(settings, classes=classes, steps_per_epoch=epoch, seed=self._seed)
        method.adopt(self.model, channels)
        method.check_units(channels)
        target = Target.of(goals, channels, goal_in_ms(self.model, self._example, channels, goals))
        guard = Guard(None, lambda: 0.0)
        return Periods(self.model, channels, method, target, guard, self._tell, goals.round_to, self.followers)

    def _gradual(self, choice: PruneSettings, score: Score | None, every: int | None, data: Any, loss: Any) -> Gradual:
        choice = resolved(choice, has_inputs=data is not None)
        if choice.method in BLOCKS:
            raise UsageError(
                f"{choice.method} makes new layers, which the optimizer lacks: call prune_ before the loop"
            )
        check(choice, has_data=data is not None or choice.method == "taylor")
        if looks_at_inputs(choice) and data is None:
            raise UsageError(f'`data` is missing: allocate="{choice.allocate}" looks at batches')
        if loss is not None and (choice.method != "taylor" or data is None):
            raise UsageError("`loss` is for method taylor, with `data` to take it on: leave it out, or give both")
        steps = self._steps or 1
        if every is not None and every > steps:
            raise UsageError(f"`every` is {every}, and there are only {steps} `steps`")
        self._settings, self._steps, self._epochs = asdict(choice), steps, 1
        goal = goal_in_ms(self.model, self._example, self._channels, choice)
        _check_reached(self.model, self._channels, choice, goal)
        batches = [] if data is None else first_batches(data, self._example, choice.score_images)
        return Gradual(
            self.model, self._example, self._channels, choice, self._tell,
            steps=steps, every=every or max(1, steps // _ROUNDS), score=score, loss=loss,
            inputs=inputs_of(batches, self._example, self.model, torch.device("cpu")) if batches else (),
            batches=batches if loss is not None or score is not None else (),
            price=None if goal is None else goal.price, followers=self.followers,
        )  # fmt: skip

    def step(self) -> bool:
        """Call this after the optimizer's step; True when the structure has changed.

        Raises:
            UsageError: the model is another than it was, or `finish` was called.
        """
        self._check_same("step")
        course = self._course
        course.disarm()
        if self.closed:
            return False
        self.done += 1
        assert self._steps is not None
        passed, before = (done * self._epochs / self._steps for done in (self.done, self.done - 1))
        ends = int(passed) > int(before)
        count = len(course.plans)
        with self._editing() if course.due or ends else nullcontext():
            course.stepped(self.optimizer, {"epoch": passed, "step": self.done})
            self.closed = ends and course.close_epoch(self.optimizer)
        course.arm(self.optimizer)
        return len(course.plans) > count

    def finish(self) -> Report:
        """End the changes of structure and say what was done. The loop may go on without the pruner.

        Raises:
            UsageError: it was called before, or the model is another than it was.
        """
        self._check_same("finish")
        course, channels = self._course, self._course.channels
        course.disarm()
        self._finished = True
        notes: list[str] = []
        refused, locked, sections = dict(course.refused), dict[str, str](), tuple[Section, ...]()
        if not course.over:
            notes.append(f"finished after {self.done} of {self._steps} steps")
        with self._editing():
            if isinstance(course, Periods):
                course.method.release()
                if not self.closed and course.plans:
                    course.round(self.optimizer)
                missed = course.target.shortfall(course.channels)
                refused |= {} if missed is None else {"target": missed}
                if course.target.ms is not None:
                    notes.append(f"{in_words(course.target.ms.price.whole(), 'ms')} are predicted for one image")
                sections = section(course.rows, [row for plan in course.plans for row in plan])
                locked = course.method.locked
            else:
                notes += course.notes
            channels = course.channels
            after = self._measured()
        return Report(
            command="compressor.Pruner",
            settings={**self._settings, "steps": self._steps},
            seed=self._seed,
            versions=versions(),
            device=device_words(device_of(self.model)),
            before=self._before,
            after=after,
            edits=tuple(row for plan in course.plans for row in plan),
            frozen={**channels.frozen, **locked},
            refused=refused,
            layers=layer_sizes(self._widths, filters(self.model)),
            notes=(*self._channels.notes, *notes),
            rows=tuple(course.rows),
            sections=sections,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a loop has to save besides model and optimizer, as plain types and tensors."""
        return {
            "settings": {**self._settings, "steps": self._steps, "seed": self._seed},
            "done": self.done,
            "closed": self.closed,
            "structure": self._course.structure(),
            "state": self._course.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, in a new Pruner of the same arguments and the network as it first was.

        The network gets the shapes that it had; load its weights and the optimizer's state afterwards.

        Raises:
            UsageError: the state is no pruner's or one of other settings, or something was loaded or done before.
        """
        if not isinstance(state, Mapping) or not {"settings", "done", "structure", "state"} <= state.keys():
            raise UsageError("this is no state of a Pruner: give what its state_dict() returned")
        if self.done or self.optimizer.state:
            raise UsageError("load the pruner's state first, then the model's and the optimizer's, before any step")
        mine = {**self._settings, "steps": self._steps, "seed": self._seed}
        other = next((name for name in mine if state["settings"].get(name) != mine[name]), None)
        if other is not None:
            raise UsageError(
                f"the state is of a Pruner with {other}={state['settings'].get(other)!r}, not {mine[other]!r}"
            )
        with self._editing():
            self._course.restore(state["structure"], state["state"])
        self.done, self.closed = state["done"], state["closed"]
        self._course.arm_later(self.optimizer)

    @contextmanager
    def _editing(self) -> Iterator[None]:
        """Meanwhile torch is neutral, the caller's random numbers are left alone, and no wrapper holds the sizes."""
        with neutral(), _apart(self._seed), without_reducer(self._wrapper):
            yield
        if "torch._dynamo" in sys.modules:  # else it gives up after some changes of shape
            torch.compiler.reset()

    def _measured(self) -> Measurements:
        cost = profile(self.model, self._example, latency=False, layers=False)
        return Measurements.of(cost, reasons={"top1": "the loop is the user's", "latency_ms": "not measured"})

    def _check_same(self, what: str) -> None:
        if self._finished:
            raise UsageError(f"{what}() after finish(): the pruner has done its work, make a new one to go on")
        for path, held, known in self._parts:
            if len(held) == len(known) and all(held.get(name) is each for name, each in known.items()):
                continue
            other = next(name for name in (*known, *held) if held.get(name) is not known.get(name))
            done = "replaced" if known.get(other) is not None else "added"
            raise UsageError(
                f"{path}{other} was {done} since the Pruner was made, so it no longer knows the model: make a new one"
            )


def _positive(name: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise UsageError(f"`{name}` is {value!r}, and has to be a whole number from 1")
    return value


def _refuse(method: str, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"`{name}` is nothing that {method} looks at: leave it out")


def _check_reached(model: nn.Module, channels: Channels, choice: PruneSettings, goal: Goal | None) -> None:
    """Raise what the last round would: a target that cannot be reached, a layer that is not there."""
    goals = [*goals_of(channels, choice), *([] if goal is None else [goal])]
    select(channels, l1(model, channels, Given()), replace(choice, allocate="uniform"), None, goals)


def _check_followers(model: nn.Module, followers: Sequence[nn.Module]) -> None:
    mine = {name: each.shape for name, each in named_tensors(model).items()}
    held = {id(each) for each in model.parameters()}
    for number, follower in enumerate(followers):
        theirs = {name: each.shape for name, each in named_tensors(follower).items()}
        other = next((name for name in (*mine, *theirs) if mine.get(name) != theirs.get(name)), None)
        if other is not None:
            raise UsageError(
                f"followers[{number}] is no copy of the model, {other} differs: give copies, such as ema.module"
            )
        if not held.isdisjoint(map(id, follower.parameters())):
            raise UsageError(
                f"followers[{number}] shares parameters with the model: it is edited with it, leave it out"
            )


def _parts(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where modules and parameters of the model hang, by the beginning of their names."""
    for path, module in model.named_modules():
        for held in (module._modules, module._parameters):
            yield f"{path}." if path else "", held


@contextmanager
def _apart(seed: int) -> Iterator[None]:
    """Meanwhile global random numbers are by this seed; the caller's go on afterwards as if nothing had been drawn."""
    with seeded(seed):
        seed_everything_(seed)
        yield
