"""Prune a network in anyone's training loop, by one line after the optimizer's step: `compressor.Pruner`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.errors import UsageError
from compressor.exporting.latency import profile
from compressor.graph import capture
from compressor.graph.neutral import bare, neutral, reducing, seeded, without_reducer
from compressor.graph.tensors import device_of, named_tensors
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.scores import Score
from compressor.pruning.settings import PruneSettings
from compressor.report.environment import device_words, versions
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.runs.course import Asked, Network
from compressor.runs.gradual import Gradual
from compressor.runs.in_loops import by_adapnet, by_criterion
from compressor.runs.oneshot import check_can_be_edited, check_optimizer, checked
from compressor.runs.own import criterion, in_words
from compressor.runs.periods import Periods
from compressor.runs.results import filters, layer_sizes
from compressor.runs.stages import Callback, silent
from compressor.settings import filled
from compressor.training.numerics import seed_everything_


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
            pruned are refitted by them, by AdapNet at the end of every period (an object of settings has to say so,
            too: `reconstruct`); "obs" and `allocate="error"` choose by them.
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
        self._wrapper, self._example, self._seed = reducing(model), example, seed
        steps, every = _positive("steps", steps), _positive("every", every)
        self.closed = self._finished = False
        own = method if isinstance(method, PruneSettings) else PruneSettings()
        names = filled(PruneSettings(), checked(keep=keep, also=also))
        traced = also if isinstance(also, Mapping) else names.also
        with neutral(), _apart(seed):
            with without_reducer(self._wrapper):
                check_can_be_edited(self.model)
            check_optimizer(self.model, optimizer)
            _check_followers(self.model, self.followers)
            channels = capture(self.model, example, keep=(*own.keep, *names.keep), also=traced or own.also)
            network = Network(self.model, channels, example, tell, self.followers)
            self._asked: Asked[Periods] | Asked[Gradual]
            if method == "adapnet" or isinstance(method, AdapNetSettings):
                _refuse("adapnet", {"ratio": ratio, "every": every, "loss": loss})
                base = None if isinstance(method, str) else method
                self._asked = by_adapnet(network, base, given, steps=steps, data=data, classes=classes, seed=seed)
            else:
                _refuse("a criterion", {"classes": classes})
                score = criterion(method.method if isinstance(method, PruneSettings) else method)
                if not isinstance(method, PruneSettings):
                    given["method"] = method if isinstance(method, str) else in_words(method)
                choice = filled(own, checked(**given, seed=seed))
                self._asked = by_criterion(network, choice, score, steps=steps, every=every, data=data, loss=loss)
            self._before, self._widths = self._measured(), filters(self.model)
        self._course: Periods | Gradual = self._asked.course
        self._parts = [(path, held, dict(held)) for path, held in _parts(self.model)]
        self._course.arm(optimizer)

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
        passed, before = (done * self._asked.epochs / self._asked.steps for done in (self.done, self.done - 1))
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
        course = self._course
        course.disarm()
        self._finished = True
        with self._editing():
            course.end(self.optimizer, closed=self.closed)
            found = course.findings()
            after = self._measured()
        early = () if course.over else (f"finished after {self.done} of {self._asked.steps} steps",)
        return Report(
            command="compressor.Pruner",
            settings={**self._asked.settings, "steps": self._asked.steps},
            seed=self._seed,
            versions=versions(),
            device=device_words(device_of(self.model)),
            before=self._before,
            after=after,
            layers=layer_sizes(self._widths, filters(self.model)),
            rows=tuple(course.rows),
            **{**found, "notes": (*course.came.notes, *early, *found["notes"])},
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a loop has to save besides model and optimizer, as plain types and tensors."""
        return {
            "settings": self._mine(),
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
        mine = self._mine()
        other = next((name for name in mine if state["settings"].get(name) != mine[name]), None)
        if other is not None:
            raise UsageError(
                f"the state is of a Pruner with {other}={state['settings'].get(other)!r}, not {mine[other]!r}"
            )
        try:
            with self._editing():
                self._course.restore(state["structure"], state["state"])
        except KeyError as error:
            raise UsageError(f"the state is of another version of compressor, it has no {error}") from error
        self.done, self.closed = state["done"], state["closed"]
        self._course.arm_later(self.optimizer)

    def _mine(self) -> dict[str, Any]:
        return {**self._asked.settings, "steps": self._asked.steps, "seed": self._seed}

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
