"""AdapNet as a method: it watches a network train, and at the end of every period says what to prune, merge and insert.

Reference: Ahmadluei, Faez, Masoumi, "Adaptive Pruning of Convolutional Neural Network". It decides and never changes a
shape: whoever trains carries out the plans, in their order, and calls this between them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from compressor.graph.channels import Channels, Group
from compressor.graph.tensors import device_of
from compressor.pruning.adapnet import schedule
from compressor.pruning.adapnet.boundary import Boundary
from compressor.pruning.adapnet.concepts import useless
from compressor.pruning.adapnet.freeze import Held, hold
from compressor.pruning.adapnet.maps import REC_BATCHES, REC_MAPS, map_size, maps_per_batch
from compressor.pruning.adapnet.neighbours import makers
from compressor.pruning.adapnet.observe import Means, Watch, reader_inputs, views
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.subspace import new_autoencoder
from compressor.pruning.adapnet.unit import Unit
from compressor.surgery.edits import Plan


class AdapNet:
    """The second phase: the structure is judged and changed every `lsep` steps.

    Lifecycle: `watch` for a period; after every optimizer step restore what `hold` took down and call `step_done`; when
    that says a period is over, leave `watch`, carry out each of `plans`, `hold` and `watch` anew; `epoch_done` after
    every epoch; `finished` says when to go on to fine-tuning, `release` before it.
    """

    def __init__(self, settings: AdapNetSettings, *, classes: int, steps_per_epoch: int, seed: int) -> None:
        self.settings = settings
        self.classes = classes
        self.lsep = schedule.period_steps(settings, steps_per_epoch)
        self.generator = torch.Generator().manual_seed(seed)
        self.means = Means(settings.reconstruct)
        self.units: dict[str, Unit] = {}  # by the group's name, in topological order
        self.locked: dict[str, str] = {}  # groups that the engine could edit and AdapNet does not -> why
        self.coupled: frozenset[str] = frozenset()  # groups that additions or gates tie together: no insertion
        self.due: list[str] = []  # groups to be judged at the end of this period
        self.period = 0
        self.step = 0  # steps done in this period
        self.epoch = 0  # epochs done in this phase
        self.removed: list[int] = []  # filters frozen, merged away or dead, by period
        self.rows: list[dict[str, Any]] = []  # what the last boundary found in every judged group, plain data

    @property
    def beta(self) -> float:
        """The threshold of the chi-square tests in this epoch."""
        return schedule.beta(self.settings, self.epoch)

    @property
    def finished(self) -> bool:
        """Whether the paper's rule or the longest allowed phase ends the changes of structure."""
        return schedule.should_stop(self.settings, self.removed, self.epoch)

    @contextmanager
    def watch(self, model: nn.Module, channels: Channels) -> Iterator[None]:
        """Record feature maps while this lasts: one period at most, since the hooks know the channels as they are."""
        self.adopt(model, channels)
        if self.step == 0:
            self._begin()
            self.means.begin(channels)
        seen = {name: views(model, channels, channels.group(name)) for name in self.units}
        recorded = schedule.recording_steps(self.lsep, REC_BATCHES)

        def slot() -> int | None:
            return recorded.index(self.step) if self.step in recorded else None

        watch = Watch(self.units, seen, self.means, self.settings, self.generator, slot)
        with watch.on(model, reader_inputs(model, channels)):
            yield

    def step_done(self) -> bool:
        """Count one step of the optimizer; True when it ended the period."""
        self.step += 1
        return self.step >= self.lsep

    def epoch_done(self) -> None:
        """Drop the concepts that became useless, and let the threshold fall."""
        for unit in self.units.values():
            for concept in useless(unit.table, unit.concepts, unit.boundaries, self.beta, self.settings):
                unit.concepts.remove(concept)
        self.epoch += 1

    def plans(
        self, model: nn.Module, current: Callable[[], Channels], admit: Callable[[Plan], Plan] = lambda plan: plan
    ) -> Iterator[Plan]:
        """What to change at the end of a period, each plan judged on the network as the plan before left it.

        `current` gives the channels as they stand: the caller carries out a plan before it asks for the next, or leaves
        the channels as they are and so refuses it. `admit` may take edits out of a plan before it is offered.
        """
        judged = [self.units[name] for name in self.due if name in self.units]
        boundary = Boundary(self, model, current, judged, admit)
        yield from boundary.plans()
        self.removed.append(boundary.removed)
        self.rows = boundary.rows()
        self.means = Means(self.settings.reconstruct)
        self.period += 1
        self.step = 0

    def hold(self, model: nn.Module, channels: Channels, optimizer: Optimizer | None) -> Held:
        """The rows of the filters that are frozen now, to be restored after every step of the period."""
        return hold(model, optimizer, channels, self.frozen)

    @property
    def frozen(self) -> dict[str, list[int]]:
        """The channels that will be removed at the end of this period, by group."""
        return {name: unit.frozen_ids for name, unit in self.units.items() if unit.frozen_ids}

    def release(self) -> None:
        """Spare what is still frozen: the phase is over."""
        for unit in self.units.values():
            unit.frozen.zero_()
            unit.reasons.clear()

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors; with the model and channels of the same moment a run goes on as it would have."""
        return {
            "units": {name: unit.state_dict() for name, unit in self.units.items()},
            "generator": self.generator.get_state(),
            "means": self.means.state_dict(),
            **{name: getattr(self, name) for name in ("period", "step", "epoch")},
            **{name: list(getattr(self, name)) for name in ("due", "removed")},
        }

    def load_state_dict(self, state: dict[str, Any], model: nn.Module, channels: Channels) -> None:
        """Take over what `state_dict` gave, for a model of the structure it had then."""
        self.adopt(model, channels)
        for name, kept in state["units"].items():
            self.units[name].load_state_dict(kept)
        self.generator.set_state(state["generator"].cpu())
        self.means.load_state_dict(state["means"], device_of(model))
        self.period, self.step, self.epoch = state["period"], state["step"], state["epoch"]
        self.due, self.removed = list(state["due"]), list(state["removed"])

    def adopt(self, model: nn.Module, channels: Channels) -> None:
        """Make the state of every group that can be judged, once, and say in `locked` why the others cannot."""
        if self.units or self.locked:
            return
        self.coupled = frozenset(group.name for group in channels.free if len(makers(model, group)) > 1)
        for group in channels.free:
            reason = self._lock(model, channels, group)
            if reason is not None:
                self.locked[group.name] = reason
                continue
            seen = views(model, channels, group)
            size = map_size(max(view.height for view in seen), max(view.width for view in seen))
            autoencoder = new_autoencoder(self.generator, device_of(model))
            self.units[group.name] = Unit(group.name, group.ids.tolist(), size, autoencoder)

    def _lock(self, model: nn.Module, channels: Channels, group: Group) -> str | None:
        if any(isinstance(model.get_submodule(name), nn.Linear) for name in makers(model, group)):
            return "a linear layer makes it: AdapNet changes convolutions"
        if not views(model, channels, group):
            return "none of its feature maps has four places, so they show no pattern"
        return None

    def _begin(self) -> None:
        self.due = list(self.units)
        for name in self.due:
            unit, batches = self.units[name], REC_BATCHES
            each = maps_per_batch(unit.filters, REC_MAPS, batches, self.settings.dict_size)
            unit.start_recording(batches * each)
