"""AdapNet on the training loop: its watch, its frozen filters and its plans, between one batch and the next."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.graph.channels import Channels
from compressor.graph.skeleton import skeleton
from compressor.pruning.adapnet.freeze import Held
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.observe import Watch
from compressor.pruning.rounding import rounded
from compressor.runs.goals import Guard, Target
from compressor.runs.stages import Callback, PeriodEvent, PeriodStep, note_all
from compressor.surgery import Plan, operate_
from compressor.surgery.edits import plan_of
from compressor.surgery.snapshot import Snapshot
from compressor.training import distributed
from compressor.training.events import NoteEvent
from compressor.training.microbatches import Step
from compressor.training.state import TrainState


class Periods:
    """The second phase of one run: `step` and `after_step` are the loop's openings, `channels` and `plans` the result.

    Hooks live from the first batch of a period to its last; `open` takes them off whatever happens.
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
    ) -> None:
        self.model, self.channels, self.method = model, channels, method
        self.target, self.guard, self.tell, self.round_to = target, guard, tell, round_to
        self.plans: list[list[dict[str, Any]]] = []  # all that was carried out, as plain data
        self.rows: list[dict[str, Any]] = []  # one a period
        self.refused: dict[str, str] = {}
        self.target_met = False
        self._before = (Snapshot.of(model), channels)
        self._macs = channels.macs()
        self._hooks = ExitStack()
        self._watch: Watch | None = None
        self._held: Held | None = None

    @contextmanager
    def open(self) -> Iterator["Periods"]:
        """The time in which the network is watched."""
        try:
            yield self
        finally:
            self._unwatch()

    def step(self, inner: Step, optimizer: Optimizer) -> Step:
        """`inner`, with the watch set up before the first batch of a period, also after resuming within one."""

        def watched(model: nn.Module, x: Any, y: Any) -> Tensor | tuple[Tensor, Tensor | None]:
            if self._held is None and not self.over:
                watch = self.method.watch(self.model, self.channels, distributed.place_of)
                self._watch = self._hooks.enter_context(watch)
                self._held = self.method.hold(self.model, self.channels, optimizer)
            return inner(model, x, y)

        return watched

    @property
    def over(self) -> bool:
        """Whether the structure stands: the target is met, or the method has finished."""
        return self.target_met or self.method.finished

    def after_step(self, state: TrainState) -> bool:
        """Keep frozen filters as they are, change the structure at a period's end; True when the phase is over.

        Where the structure stands in the middle of an epoch, the rest of it is trained as it is.
        """
        if not self.over:
            assert self._held is not None and self._watch is not None
            self._held.restore_()
            self.tell(PeriodStep(self.method.period, self.method.step + 1, self.method.lsep))
            seen = self._watch.take()
            if self.method.step_done(seen and seen.over(distributed.summed, distributed.largest)):
                self._unwatch()
                self._change(state)
        if state.batch < state.batches:
            return False
        self.method.epoch_done()
        if self.over:
            self._round(state.optimizer)
        return self.over

    def _unwatch(self) -> None:
        self._hooks.close()
        self._held = None

    def _change(self, state: TrainState) -> None:
        beta, done = self.method.beta, Counter[str]()
        # The gradients belong to the step before; without them there is less to edit and nothing to lose.
        state.optimizer.zero_grad(set_to_none=True)
        plans = partial(self.method.plans, self.model, lambda: self.channels, self._admit)
        for plan in distributed.each_from_first(plans):
            if self._carry_out(plan, state.optimizer):
                self.plans.append(list(plan.rows()))
                done.update(edit.kind for edit in plan.edits)
        self._follow_first()
        self.guard.trained()
        self.target_met = self.target.met(self.channels)
        self._report(state, beta, done)

    def _round(self, optimizer: Optimizer) -> None:
        """Make the widths that changed multiples of what the chip likes, now that the structure stands."""
        first = self._before[1]
        changed = [group for group in self.channels.free if group.size != first.group(group.name).size]
        target = self.target if self.target_met else Target(self.channels.macs(), None)

        def fits(plan: Plan) -> bool:
            return target.met(operate_(skeleton(self.model), plan, self.channels))

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
        """Edit model, optimizer and channels; take it back where it does too much harm."""
        if self.guard.undo_drop is None:
            self.channels = operate_(self.model, plan, self.channels, optimizer)
            return True
        distributed.from_first(self.guard.ready)
        before = Snapshot.of(self.model, optimizer)
        updated = operate_(self.model, plan, self.channels, optimizer)
        passed, measured = distributed.from_first(self.guard.passes)
        if passed:
            self.channels = updated
            return True
        before.restore_()
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(edit.kind for edit in plan.edits).items())
        name = f"period {plan.period}: {kinds} of {', '.join(dict.fromkeys(edit.group for edit in plan.edits))}"
        self.refused[name] = f"{measured}, more than --undo-drop allows: undone"
        note_all([f"{name}: {self.refused[name]}"], self.tell)
        return False

    def _report(self, state: TrainState, beta: float, done: Counter[str]) -> None:
        found = self.method.rows
        macs = self.channels.macs()
        row: dict[str, Any] = {
            "phase": "period",
            # The middle of the step, counted like the loop's rows, whose epoch is over at `epoch` + 1.
            "epoch": state.epoch + (state.batch - 0.5) / state.batches - 1,
            "step": state.step,
            "period": self.method.period - 1,
            "beta": beta,
            "frozen": sum(map(len, self.method.frozen.values())),
            **{f"{kind}s": done[kind] for kind in ("prune", "merge", "insert")},
            "filters": sum(unit.filters for unit in self.method.units.values()),
            "concepts": sum(len(unit.concepts) for unit in self.method.units.values()),
            "macs": macs,
            "params": self.channels.params(),
            "groups": [dict(each) for each in found],
        }
        self.rows.append(row)
        text = (
            f"period {row['period']}  pruned {done['prune']}, merged {done['merge']}, inserted {done['insert']}, "
            f"frozen {row['frozen']}  {row['filters']} filters, {macs / self._macs:.0%} of MACs"
        )
        self.tell(PeriodEvent(row, text))

    def structure(self) -> dict[str, Any]:
        """The edits so far, from which `restore` makes the same network and the same channels."""
        return {"plans": self.plans}

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
        self._unwatch()
        snapshot, self.channels = self._before
        snapshot.restore_()
        self.plans = [list(rows) for rows in structure["plans"]]
        for rows in self.plans:
            self.channels = operate_(self.model, plan_of(rows), self.channels)
        self.method.load_state_dict(state["adapnet"], self.model, self.channels)
        self.rows, self.refused = list(state["rows"]), dict(state["refused"])
        self.target_met = state["target_met"]


def _on_the_host(value: Any) -> Any:
    """Nested plain data with its tensors on the CPU, as another process can take them."""
    if isinstance(value, dict):
        return {key: _on_the_host(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_the_host(each) for each in value)
    return value.cpu() if isinstance(value, Tensor) else value
