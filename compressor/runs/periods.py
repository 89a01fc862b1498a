"""AdapNet in a loop: its watch, its frozen filters and its plans, between one batch and the next."""

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.graph.channels import Channels
from compressor.graph.neutral import as_written
from compressor.graph.skeleton import skeleton
from compressor.pruning.adapnet.freeze import Held
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.observe import Watch
from compressor.pruning.adapnet.section import galleries, section
from compressor.pruning.price import in_words
from compressor.pruning.reconstruction import Reconstruction
from compressor.pruning.reconstruction.calibration import fewer
from compressor.pruning.target import rounded
from compressor.runs.course import Course, Network
from compressor.runs.goals import Guard, Target
from compressor.runs.stages import PeriodEvent, PeriodStep, note_all
from compressor.surgery import Plan, operate_
from compressor.surgery.snapshot import Snapshot, all_or_nothing
from compressor.training import distributed
from compressor.training.events import NoteEvent

REFITTED_BY = 256  # images, at the end of a period


class Periods(Course):
    """The second phase of AdapNet, in any loop."""

    def __init__(
        self,
        network: Network,
        method: AdapNet,
        target: Target | None = None,
        guard: Guard | None = None,
        round_to: int | Literal["auto"] = 1,
        inputs: Sequence[Any] = (),
    ) -> None:
        """By `inputs`, where given, layers that read a filter that goes are refitted."""
        super().__init__(network)
        self.method, self.target, self.guard, self.round_to = method, target or Target(), guard or Guard(), round_to
        self.inputs = fewer(inputs, 0, REFITTED_BY)
        self.target_met = False
        self._asked = self.target  # by the channels as they came
        self._hooks = ExitStack()
        weakref.finalize(self, self._hooks.close)
        self._armed = False
        self._watch: Watch | None = None
        self._held: Held | None = None

    @property
    def due(self) -> bool:
        """Whether the next step ends a period."""
        return not self.over and self.method.step + 1 >= self.method.lsep

    @property
    def over(self) -> bool:
        """Whether the structure stands: the target is met, or the method has finished."""
        return self.target_met or self.method.finished

    def arm(self, optimizer: Optimizer) -> None:
        """Look at the next batch, if it is one that is recorded; a compiled model runs as written meanwhile."""
        if self._armed or self.over:
            return
        if self._watch is None:
            self._watch = self.method.watch(self.model, self.channels, distributed.place_of)
            self._held = self.method.hold(self.model, self.channels, optimizer)
        if self.method.slot is not None:
            self._hooks.enter_context(self._watch.on(self.model))
            self._hooks.enter_context(as_written)
        self._armed = True

    def arm_later(self, optimizer: Optimizer) -> None:
        """As `arm`, when the next batch begins: weights and the optimizer's state are still to be loaded."""
        periods = weakref.ref(self)

        def begin(model: nn.Module, inputs: Any) -> None:
            self = periods()
            if self is not None and model.training:
                self.disarm()
                self.arm(optimizer)
                if self._watch is not None and self.method.slot is not None:
                    self._watch.begin(model, inputs)  # its own hook has come too late for this pass

        self._hooks.callback(self.model.register_forward_pre_hook(begin).remove)
        self._hooks.enter_context(as_written)

    def disarm(self) -> None:
        """Take hooks off."""
        self._hooks.close()
        self._armed = False

    def stepped(self, optimizer: Optimizer, place: Mapping[str, float]) -> bool:
        """Keep frozen filters as they are, change the structure at a period's end; True when it changed.

        `place` says where in the run that is, for the period's row. Where the structure stands in the middle of an
        epoch, the rest of it is trained as it is.
        """
        self.disarm()
        if self.over or self._watch is None or self._held is None:
            return False
        self._held.restore_()
        self.tell(PeriodStep(self.method.period, self.method.step + 1, self.method.lsep))
        seen = self._watch.take()
        if not self.method.step_done(seen and seen.over(distributed.summed, distributed.largest)):
            return False
        self._watch = self._held = None
        count = len(self.plans)
        self._change(optimizer, place)
        return len(self.plans) > count

    def close_epoch(self, optimizer: Optimizer) -> bool:
        """Let the threshold fall; where the structure stands, round its widths. True where the phase is over."""
        self.method.epoch_done()
        if self.over:
            self.round(optimizer)
        return self.over

    def _change(self, optimizer: Optimizer, place: Mapping[str, float]) -> None:
        beta, done = self.method.beta, Counter[str]()
        plans = partial(self.method.plans, self.model, lambda: self.channels, self._admit)
        for plan in distributed.each_from_first(plans):
            if self._carry_out(plan, optimizer):
                self.plans.append(list(plan.rows()))
                done.update(edit.kind for edit in plan.edits)
        self._follow_first()
        self.guard.trained()
        self.target_met = self.target.met(self.channels)
        if self.target_met:  # what is left of the epoch trains the widths as they stay
            self.round(optimizer)
        self._report(place, beta, done)

    def round(self, optimizer: Optimizer) -> None:
        """Make the widths that changed multiples of what the chip likes, now that the structure stands.

        They end at the target or below where that is met or rounding meets it, else at what the network costs now.
        """
        period = self.method.period - 1
        changed = [group for group in self.channels.free if group.size != self.came.group(group.name).size]

        def after(plan: Plan) -> Channels:
            return operate_(skeleton(self.model), plan, self.channels)

        def fits(target: Target, plan: Plan) -> bool:
            return target.after(plan, self.channels).met(after(plan))

        def off(plan: Plan) -> float:
            return abs(after(plan).macs() / (self.target.macs or self.channels.macs()) - 1)

        def within(target: Target) -> Plan:
            return rounded(self.model, self.channels, changed, self.round_to, partial(fits, target), off, period)

        def choose() -> Plan:
            plan = within(self.target)
            return plan if fits(self.target, plan) else within(Target(self.channels.macs()))

        plan = distributed.from_first(choose)
        if plan.edits and self._carry_out(plan, optimizer):
            self.plans.append(list(plan.rows()))
            rounded_groups = dict.fromkeys(edit.group for edit in plan.edits)
            self.tell(NoteEvent(f"widths are multiples of what the chip likes now: {', '.join(rounded_groups)}"))

    def _follow_first(self) -> None:
        """Of several processes only the first has judged: the others take over what its method knows now."""
        judged = distributed.from_first(lambda: (_on_the_host(self.method.state_dict()), self.method.rows))
        if not distributed.first():
            state, self.method.rows = judged
            self.method.load_state_dict(state, self.model, self.channels)

    def _admit(self, plan: Plan) -> Plan:
        return self.target.trimmed(plan, self.channels)

    def _carry_out(self, plan: Plan, optimizer: Optimizer) -> bool:
        """Edit model, optimizer, followers and channels; take it back where it does too much harm."""
        target = self.target.after(plan, self.channels)
        if self.guard.undo_drop is None:
            with self.together(optimizer):
                updated, found = self._edited(plan, optimizer)
            self.channels, self.target = updated, target
            self.note(found)
            return True
        distributed.from_first(self.guard.ready)
        before = Snapshot.of(self.model, optimizer)
        with all_or_nothing(before):
            updated, found = self._edited(plan, optimizer)
            passed, measured = distributed.from_first(self.guard.passes)
        if passed:
            self.channels, self.target = updated, target
            self.note(found)
            return True
        before.restore_()
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(edit.kind for edit in plan.edits).items())
        name = f"period {plan.period}: {kinds} of {', '.join(dict.fromkeys(edit.group for edit in plan.edits))}"
        self.refused[name] = f"{measured}, more than `undo_drop` allows: undone"
        note_all([f"{name}: {self.refused[name]}"], self.tell)
        return False

    def _edited(self, plan: Plan, optimizer: Optimizer) -> tuple[Channels, Reconstruction]:
        """Edit model, optimizer and followers; returns the channels after that, and what was refitted."""
        if not self.inputs or not plan.removed:
            return operate_(self.model, plan, self.channels, optimizer, self.followers), Reconstruction()
        removing, adding = plan.parted()
        channels, found = self.cut_(removing, optimizer, self.inputs)
        if adding.edits:
            channels = operate_(self.model, adding, channels, optimizer, self.followers)
        return channels, found

    def _report(self, place: Mapping[str, float], beta: float, done: Counter[str]) -> None:
        macs = self.channels.macs()
        row: dict[str, Any] = {
            "phase": "period",
            **place,
            "period": self.method.period - 1,
            "beta": beta,
            "frozen": sum(map(len, self.method.frozen.values())),
            **{f"{kind}s": done[kind] for kind in ("prune", "merge", "insert")},
            "filters": sum(unit.filters for unit in self.method.units.values()),
            "concepts": sum(len(unit.concepts) for unit in self.method.units.values()),
            "macs": macs,
            "params": self.channels.params(),
            "groups": [dict(each) for each in self.method.rows],
        }
        self.rows.append(row)
        text = (
            f"period {row['period']}  pruned {done['prune']}, merged {done['merge']}, inserted {done['insert']}, "
            f"frozen {row['frozen']}  {row['filters']} filters, {macs / self.came.macs():.0%} of MACs"
        )
        self.tell(PeriodEvent(row, text))

    def end(self, optimizer: Optimizer, *, closed: bool) -> None:
        """Where the loop goes on without, frozen filters are let go, and widths rounded that are not."""
        self.method.release()
        if self.plans and not closed:
            self.round(optimizer)

    def findings(self) -> dict[str, Any]:
        """With how far the target is, and what the concepts look like."""
        found = super().findings()
        missed, ms = self.target.shortfall(self.channels), self.target.ms
        return {
            **found,
            "frozen": {**found["frozen"], **self.method.locked},
            "refused": found["refused"] if missed is None else {**found["refused"], "target": missed},
            "sections": section(self.rows, found["edits"], galleries(self.method.units.values())),
            "notes": (
                *found["notes"],
                *(() if ms is None else (f"{in_words(ms.price.whole(), 'ms')} are predicted for one image",)),
            ),
        }

    def structure(self) -> dict[str, Any]:
        """With what was timed, which another time would not be the same."""
        return {**super().structure(), **self._asked.measured()}

    def state(self) -> dict[str, Any]:
        """With what the method knows."""
        return {**super().state(), "adapnet": self.method.state_dict(), "target_met": self.target_met}

    def restore(self, structure: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """With what the method knew."""
        self._watch = self._held = None
        self.target = self._asked = self._asked.as_measured(structure)
        super().restore(structure, state)
        self.method.load_state_dict(state["adapnet"], self.model, self.channels)
        self.target_met = state["target_met"]

    def follow(self, plan: Plan) -> None:
        """The target's."""
        self.target = self.target.after(plan, self.channels)


def _on_the_host(value: Any) -> Any:
    """Nested plain data with its tensors on the CPU, as another process can take them."""
    if isinstance(value, dict):
        return {key: _on_the_host(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_the_host(each) for each in value)
    return value.cpu() if isinstance(value, Tensor) else value
