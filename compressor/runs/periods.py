"""AdapNet in a loop: its watch, its frozen filters and its plans, between one batch and the next.

`compressor prune --method adapnet` and `compressor.Pruner` are both this.
"""

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
from compressor.pruning.target import rounded
from compressor.runs.goals import Guard, Target
from compressor.runs.stages import Callback, PeriodEvent, PeriodStep, note_all
from compressor.surgery import Plan, operate_
from compressor.surgery.edits import plan_of
from compressor.surgery.snapshot import Snapshot, all_or_nothing
from compressor.training import distributed
from compressor.training.events import NoteEvent


class Periods:
    """The second phase of a run, in any loop: `arm` before a batch, `stepped` after it, `close_epoch` after an epoch.

    `channels` and `plans` are the result. Hooks are there only while a batch is recorded, and `disarm` takes them off.
    """

    def __init__(
        self,
        model: nn.Module,
        channels: Channels,
        method: AdapNet,
        target: Target,
        guard: Guard,
        tell: Callback,
        round_to: int | Literal["auto"] = 1,
        followers: Sequence[nn.Module] = (),
    ) -> None:
        self.model, self.channels, self.method, self.followers = model, channels, method, followers
        self.target, self.guard, self.tell, self.round_to = target, guard, tell, round_to
        self.plans: list[list[dict[str, Any]]] = []  # all that was carried out, as plain data
        self.rows: list[dict[str, Any]] = []  # one a period
        self.refused: dict[str, str] = {}
        self.target_met = False
        self._before = (Snapshot.of(model), channels, target)
        self._macs = channels.macs()
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
        self._report(place, beta, done)

    def round(self, optimizer: Optimizer) -> None:
        """Make the widths that changed multiples of what the chip likes, now that the structure stands."""
        first = self._before[1]
        changed = [group for group in self.channels.free if group.size != first.group(group.name).size]
        target = self.target if self.target_met else Target(self.channels.macs(), None)

        def fits(plan: Plan) -> bool:
            after = operate_(skeleton(self.model), plan, self.channels)
            return target.after(plan, self.channels).met(after)

        choose = partial(rounded, self.model, self.channels, changed, self.round_to, fits, self.method.period - 1)
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
            self.channels = operate_(self.model, plan, self.channels, optimizer, self.followers)
            self.target = target
            return True
        distributed.from_first(self.guard.ready)
        before = Snapshot.of(self.model, optimizer)
        with all_or_nothing(before):
            updated = operate_(self.model, plan, self.channels, optimizer)
            passed, measured = distributed.from_first(self.guard.passes)
        if passed:
            self.channels, self.target = updated, target
            return True
        before.restore_()
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(edit.kind for edit in plan.edits).items())
        name = f"period {plan.period}: {kinds} of {', '.join(dict.fromkeys(edit.group for edit in plan.edits))}"
        self.refused[name] = f"{measured}, more than --undo-drop allows: undone"
        note_all([f"{name}: {self.refused[name]}"], self.tell)
        return False

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
            f"frozen {row['frozen']}  {row['filters']} filters, {macs / self._macs:.0%} of MACs"
        )
        self.tell(PeriodEvent(row, text))

    def structure(self) -> dict[str, Any]:
        """The edits so far, from which `restore` makes the same network and the same channels."""
        return {"plans": self.plans, **self._before[2].measured()}

    def state(self) -> dict[str, Any]:
        """Everything else that a resumed run needs, as plain data and tensors."""
        return {
            "adapnet": self.method.state_dict(),
            "rows": self.rows,
            "refused": self.refused,
            "target_met": self.target_met,
        }

    def restore(self, structure: dict[str, Any], state: dict[str, Any]) -> None:
        """Go back, or forward, to the structure and the method's state of a checkpoint; weights are put in after."""
        self.disarm()
        self._watch = self._held = None
        snapshot, self.channels, target = self._before
        self._before = (snapshot, self.channels, target.as_measured(structure))
        snapshot.restore_()
        self.target = self._before[2]
        self.plans = [list(rows) for rows in structure["plans"]]
        for rows in self.plans:
            self._replay(plan_of(rows))
        self.method.load_state_dict(state["adapnet"], self.model, self.channels)
        self.rows, self.refused = list(state["rows"]), dict(state["refused"])
        self.target_met = state["target_met"]

    def _replay(self, plan: Plan) -> None:
        self.target = self.target.after(plan, self.channels)
        self.channels = operate_(self.model, plan, self.channels, followers=self.followers)


def _on_the_host(value: Any) -> Any:
    """Nested plain data with its tensors on the CPU, as another process can take them."""
    if isinstance(value, dict):
        return {key: _on_the_host(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_the_host(each) for each in value)
    return value.cpu() if isinstance(value, Tensor) else value
