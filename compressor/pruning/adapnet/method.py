"""AdapNet as a method: it watches a network train, and at the end of every period says what to prune, merge and insert.

Reference: Ahmadluei, Faez, Masoumi, "Adaptive Pruning of Convolutional Neural Network". It decides and never changes a
shape: whoever trains carries out the plans, in their order, and calls this between them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from compressor.errors import ModelError
from compressor.graph.channels import Channels, Group
from compressor.graph.tensors import device_of
from compressor.pruning.adapnet import boundary, clusters, prune, schedule, tables
from compressor.pruning.adapnet.extract import extract
from compressor.pruning.adapnet.freeze import Held, hold
from compressor.pruning.adapnet.maps import REC_BATCHES, REC_MAPS, Means, map_size, maps_per_batch
from compressor.pruning.adapnet.neighbours import makers
from compressor.pruning.adapnet.observe import Seen, Watch, reader_inputs, views
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.subspace import new_autoencoder
from compressor.pruning.adapnet.unit import Unit
from compressor.pruning.selection import listed_reasons
from compressor.surgery.edits import Edit, Plan


class AdapNet:
    """The second phase: the structure is judged and changed every `lsep` steps.

    Lifecycle: `watch` for a period, with its hooks `on` at least where there is a `slot`; after every optimizer step
    restore what `hold` took down, and hand what the watch has seen to `step_done`; when that says a period is over,
    carry out each of `plans`, `hold` and `watch` anew; `epoch_done` after every epoch; `finished` says when to go on to
    fine-tuning, `release` before it.
    """

    def __init__(self, settings: AdapNetSettings, *, classes: int | None, steps_per_epoch: int, seed: int) -> None:
        self.settings = settings
        self.classes = classes
        self.lsep = schedule.period_steps(settings, steps_per_epoch)
        self.generator = torch.Generator().manual_seed(seed)
        self.means = Means()
        self.units: dict[str, Unit] = {}  # by the group's name, in topological order
        self.locked: dict[str, str] = {}  # groups that the engine could edit and AdapNet does not -> why
        self.coupled: frozenset[str] = frozenset()  # groups that additions or gates tie together: no insertion
        self.period = 0
        self.step = 0  # steps done in this period
        self.epoch = 0  # epochs done in this phase
        self.removed: list[int] = []  # filters frozen, merged away or dead, by period
        self.rows: list[dict[str, Any]] = []  # what the last period found in every group, plain data

    @property
    def beta(self) -> float:
        """The threshold of the chi-square tests in this epoch."""
        return schedule.beta(self.settings, self.epoch)

    @property
    def finished(self) -> bool:
        """Whether the paper's rule or the longest allowed phase ends the changes of structure."""
        return schedule.should_stop(self.settings, self.removed, self.epoch)

    @property
    def slot(self) -> int | None:
        """Which of the period's recorded batches the next one is; None where it is not looked at."""
        recorded = schedule.recording_steps(self.lsep, REC_BATCHES)
        return recorded.index(self.step) if self.step in recorded else None

    def watch(
        self, model: nn.Module, channels: Channels, part: Callable[[int], tuple[int, int]] = lambda count: (0, count)
    ) -> Watch:
        """Begin a period, or go on within one: what looks at feature maps in it. It knows the channels as they are.

        `part` says where this process's images begin in a batch, and how many there are in all.
        """
        self.adopt(model, channels)
        if self.step == 0:
            for unit in self.units.values():
                each = maps_per_batch(unit.filters, REC_MAPS, REC_BATCHES, self.settings.dict_size)
                unit.start_recording(REC_BATCHES * each)
            self.means.begin(channels)
        seen = {name: views(model, channels, channels.group(name)) for name in self.units}
        readers = reader_inputs(model, channels)
        return Watch(self.units, seen, readers, self.generator, lambda: self.slot, part)

    def step_done(self, seen: Seen | None) -> bool:
        """Count one step of the optimizer, of whose batch this was seen; True when it ended the period."""
        if seen is not None:
            for name, shown in seen.maps.items():
                unit = self.units[name]
                assert unit.recording is not None
                unit.recording.add(shown, unit.frozen)
            for weight, moments in seen.moments:
                self.means.add(weight, moments)
        self.step += 1
        return self.step >= self.lsep

    def epoch_done(self) -> None:
        """Drop the concepts that became useless, and let the threshold fall."""
        for unit in self.units.values():
            for concept in tables.useless(unit.table, unit.concepts, unit.boundaries, self.beta, self.settings):
                unit.concepts.remove(concept)
        self.epoch += 1

    def plans(
        self, model: nn.Module, current: Callable[[], Channels], admit: Callable[[Plan], Plan] = lambda plan: plan
    ) -> Iterator[Plan]:
        """What to change at the end of a period, each plan judged on the network as the plan before left it.

        `current` gives the channels as they stand: the caller carries out a plan before it asks for the next, or leaves
        the channels as they are and so refuses it. `admit` may take edits out of a plan before it is offered. Empty
        plans are left out; the units follow each plan once it was carried out.
        """
        self.removed.append(0)
        for unit in self.units.values():
            unit.close_()
        yield from self._offered(self._removals, model, current, admit)
        judged = self._see()
        yield from self._offered(partial(self._reductions, judged), model, current, admit)
        for unit in self.units.values():
            unit.recording = None
        yield from self._offered(partial(self._insertions, judged), model, current, admit)
        self.rows = [self._row(unit) for unit in self.units.values()]
        self.means = Means()
        self.period += 1
        self.step = 0

    def _offered(
        self,
        decide: Callable[[boundary.Looked], Iterator[Edit]],
        model: nn.Module,
        current: Callable[[], Channels],
        admit: Callable[[Plan], Plan],
    ) -> Iterator[Plan]:
        before = current()
        plan = admit(
            Plan(tuple(decide(boundary.Looked(model, before, self.means, self.settings, self.generator))), self.period)
        )
        if not plan.edits:
            return
        yield plan
        refused = current() is before
        edits: dict[str, list[Edit]] = defaultdict(list)
        for edit in plan.edits:
            edits[edit.group].append(edit)
        for name, its_edits in edits.items():
            if refused:
                self.units[name].spare_(its_edits)
            else:
                self.removed[-1] += self.units[name].follow_(its_edits, current().group(name).ids.tolist())

    def _removals(self, looked: boundary.Looked) -> Iterator[Edit]:
        for unit in self.units.values():
            yield from boundary.removals(looked, unit)

    def _see(self) -> list[Unit]:
        """Find the concepts of the period's maps; returns the units whose maps were enough."""
        found = extract(list(self.units.values()), self.classes, self.settings, self.generator)
        for unit in self.units.values():
            unit.protect = (unit.protect - 1).clamp(min=0)
        for name, clustering in found.items():
            limit = clusters.count_limit(self.classes, self.units[name].filters, len(clustering.points))
            self.units[name].see_(clustering, limit, self.beta, self.settings)
        return [unit for name, unit in self.units.items() if name in found]

    def _reductions(self, judged: list[Unit], looked: boundary.Looked) -> Iterator[Edit]:
        """Algorithms 2 and 3; what algorithm 2 chose is frozen first, unless the settings say otherwise."""
        thresholds = self._thresholds(looked.channels)
        for unit in judged:
            leaving = boundary.candidates(looked, unit, thresholds[unit.name])
            if self.settings.freeze:
                unit.freeze_(leaving)
                self.removed[-1] += len(leaving)
            else:
                why = dict.fromkeys(map(unit.ids.index, leaving), boundary.UNIFORM)
                yield from boundary.prunes(looked, unit, why, leaving)
            yield from boundary.merges(looked, unit, leaving)

    def _insertions(self, judged: list[Unit], looked: boundary.Looked) -> Iterator[Edit]:
        names = list(self.units)
        for unit in judged:
            coupled = unit.name in self.coupled
            yield from boundary.insertion(looked, unit, coupled, names.index(unit.name), len(names))

    def _thresholds(self, channels: Channels) -> dict[str, float]:
        """Of every group in this period; with a bias lower where channels are expensive, higher where they are not."""
        bias = self.settings.params_bias
        if not bias:
            return dict.fromkeys(self.units, self.beta)
        costs = prune.relative_costs(channels, list(self.units))
        return {name: prune.biased(self.beta, cost, bias) for name, cost in costs.items()}

    def _row(self, unit: Unit) -> dict[str, Any]:
        return {
            "period": self.period,
            "beta": self.beta,
            "group": unit.name,
            "filters": unit.filters,
            "clusters": unit.clusters,
            "concepts": len(unit.concepts),
            "frozen": len(unit.frozen_ids),
        }

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
            unit.release_()

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors; with the model and channels of the same moment a run goes on as it would have."""
        return {
            "units": {name: unit.state_dict() for name, unit in self.units.items()},
            "generator": self.generator.get_state(),
            "means": self.means.state_dict(),
            **{name: getattr(self, name) for name in ("period", "step", "epoch")},
            "removed": list(self.removed),
        }

    def load_state_dict(self, state: dict[str, Any], model: nn.Module, channels: Channels) -> None:
        """Take over what `state_dict` gave, for a model of the structure it had then."""
        self.adopt(model, channels)
        for name, kept in state["units"].items():
            self.units[name].load_state_dict(kept)
        self.generator.set_state(state["generator"].cpu())
        self.means.load_state_dict(state["means"], device_of(model))
        self.period, self.step, self.epoch = state["period"], state["step"], state["epoch"]
        self.removed = list(state["removed"])

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

    def check_units(self, channels: Channels) -> None:
        """Raise ModelError where `adopt` found none."""
        if not self.units:
            stays = {**channels.frozen, **self.locked}
            raise ModelError(f"there is nothing that AdapNet could change: {listed_reasons(stays)}")

    def _lock(self, model: nn.Module, channels: Channels, group: Group) -> str | None:
        if any(isinstance(model.get_submodule(name), nn.Linear) for name in makers(model, group)):
            return "a linear layer makes it: AdapNet changes convolutions"
        if not views(model, channels, group):
            return "none of its feature maps has four places, so they show no pattern"
        return None
