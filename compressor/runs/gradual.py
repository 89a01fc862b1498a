"""A criterion applied little by little while a network trains: score, select, cut and refit every so many steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.errors import CompressorError, ModelError, UsageError
from compressor.graph.tensors import device_of
from compressor.pruning.oneshot import Ranked, rank
from compressor.pruning.price import Goal, Price, macs_price, memory_goals, peak_memory, size_price
from compressor.pruning.scores import Given, Score, add_, products_of
from compressor.pruning.selection import Selection, select
from compressor.pruning.settings import PruneSettings, in_time, looks_at_inputs
from compressor.runs.course import Course, Network
from compressor.runs.goals import followed
from compressor.runs.latency_goal import selected, target_in_ms
from compressor.runs.stages import PeriodEvent
from compressor.surgery import Plan
from compressor.training import distributed
from compressor.training.task import moved

ROUNDS = 10  # where nothing else is said
WATCHED = 8  # batches before a pruning step, whose gradients are gathered where the criterion wants them


@dataclass(frozen=True)
class Looks:
    """What a criterion may look at besides the network, when a round is due."""

    score: Score | None = None  # the user's own criterion
    inputs: Sequence[Any] = ()  # as the network takes them
    batches: Sequence[Any] = ()  # as the loss, or the user's criterion, takes them
    loss: Callable[[nn.Module, Any], Tensor] | None = None  # by which gradients are taken; None: those of the loop


class Gradual(Course):
    """Pruning of one network by a criterion, in any loop.

    After round r of R a share 1 - (1 - r / R)^3 of what is to go has gone: much while there is much to spare, little at
    the end. Reference: Zhu, Gupta, "To prune, or not to prune", 2017, equation 1.
    """

    def __init__(
        self,
        network: Network,
        choice: PruneSettings,
        steps: int,
        every: int,
        looks: Looks,
        price: Price | None = None,
    ) -> None:
        """`choice` is resolved; there are so many `steps`, and a round is due `every` so many; `price` is in ms."""
        super().__init__(network)
        self.choice, self.steps, self.every, self.looks = choice, steps, every, looks
        self.step = 0
        self._prices: dict[str, Price] = {} if price is None else {"target_ms": price}
        self._asked, channels = dict(self._prices), self.came
        self._whole = {"target_macs": channels.macs(), "target_mb": size_price(channels).whole()}
        if choice.target_ram is not None:
            self._whole["target_ram"] = peak_memory(channels)
        self._whole |= {name: each.whole() for name, each in self._prices.items()}
        self._changes: dict[str, Tensor] = {}  # squared changes of the loss by group, since the round before
        self._products: dict[str, Tensor] = {}  # gradient times weight of the batch that runs
        self._hooks: list[Any] = []

    @property
    def over(self) -> bool:
        """Whether all rounds are done."""
        return self.step >= self.steps

    @property
    def due(self) -> bool:
        """Whether the next step ends in a round."""
        return not self.over and self._left() == 1

    def _left(self) -> int:
        """Steps until the next round, itself included."""
        return min(self.every - self.step % self.every, self.steps - self.step)

    def arm(self, optimizer: Optimizer) -> None:
        """Gather the gradients of the next batch, where the criterion looks at them and a round is near."""
        gathers = self.choice.method == "taylor" and self.looks.loss is None
        if not self._hooks and gathers and not self.over and self._left() <= WATCHED:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    self._hooks.append(parameter.register_hook(self._hook(name, parameter)))

    def arm_later(self, optimizer: Optimizer) -> None:
        """The same: nothing here depends on weights that are still to be loaded."""
        self.arm(optimizer)

    def _hook(self, name: str, parameter: nn.Parameter) -> Callable[[Tensor], None]:
        def gather(gradient: Tensor) -> None:
            product = gradient.detach() * parameter.detach()
            self._products[name] = self._products[name] + product if name in self._products else product

        return gather

    def disarm(self) -> None:
        """Take hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def stepped(self, optimizer: Optimizer, place: Mapping[str, float]) -> bool:
        """Prune where a round is due; True when channels went. `place` says where in the run that is."""
        self.disarm()
        if self.over:
            return False
        products, self._products = self._products, {}
        if products:
            whole = {name: distributed.summed(product) for name, product in products.items()}
            if all(bool(product.isfinite().all()) for product in whole.values()):  # a scaler tries how far it can go
                add_(self._changes, _complete(whole, self.model), self.channels)
        due = self.due
        self.step += 1
        return due and self._round(optimizer, place)

    def end(self, optimizer: Optimizer, *, closed: bool) -> None:
        """Nothing is left to do where the loop goes on without."""

    def close_epoch(self, optimizer: Optimizer) -> bool:
        """Nothing is told by epochs here."""
        return self.over

    def _round(self, optimizer: Optimizer, place: Mapping[str, float]) -> bool:
        number, rounds = -(-self.step // self.every), -(-self.steps // self.every)
        gone = 1 - (1 - number / rounds) ** 3
        selection, missed = distributed.from_first(lambda: self._tried(gone, last=number == rounds))
        if isinstance(missed, UsageError):  # there is nothing to remove by now
            self.notes.append(f"step {self.step}: {missed}")
        elif missed is not None:
            self.refused[f"step {self.step}"] = str(missed)
        if selection is None:
            return False
        plan = replace(selection.plan, period=number - 1)
        self._carry_out(plan, optimizer)
        self._changes = {}
        self.notes += [note for note in selection.notes if note not in self.notes]
        macs = self.channels.macs()
        row = {
            "phase": "period", **place, "period": number - 1, "prunes": len(plan.removed), "macs": macs,
            "params": self.channels.params(),
        }  # fmt: skip
        self.rows.append(row)
        share = macs / self._whole["target_macs"]
        self.tell(PeriodEvent(row, f"round {number} of {rounds}  {len(plan.removed)} channels, {share:.0%} of MACs"))
        return True

    def _tried(self, gone: float, *, last: bool) -> tuple[Selection | None, CompressorError | None]:
        """`_selected`, or why there is no selection, the same for all processes."""
        try:
            return self._selected(gone, last=last), None
        except (ModelError, UsageError) as error:
            return None, error

    def _selected(self, gone: float, *, last: bool) -> Selection:
        """What goes so that this share of all that is to go has gone."""
        named = tuple((pattern, ratio * gone) for pattern, ratio in self.choice.ratio_for)
        choice = replace(self.choice, ratio=self.choice.ratio * gone, ratio_for=named)
        ranked = self._ranked(choice)
        if last and in_time(choice) and choice.table is None:
            wanted: dict[str, Any] = {
                name: goal.wanted for name, goal in self._goals(1.0).items() if name in self._whole
            }
            final = replace(choice, **wanted, speedup=None)
            return selected(self.model, self.example, self.channels, ranked, final)
        goals = list(self._goals(gone).values())
        return select(self.channels, ranked.scores, choice, ranked.curves, goals, self.came)

    def _goals(self, gone: float) -> dict[str, Goal]:
        """Every target that was given, as far as it is to be met by now; left out where it is met."""
        prices = {"target_macs": macs_price(self.channels), "target_mb": size_price(self.channels), **self._prices}
        found = {}
        for name, price in prices.items():
            whole, wanted = self._whole[name], getattr(self.choice, name)
            if name == "target_ms":
                wanted = target_in_ms(self.choice, whole)
            elif wanted is not None and name == "target_macs" and wanted <= 1:
                wanted *= whole
            if wanted is not None:
                found[name] = Goal.at(price, whole - (whole - wanted) * gone)
        if self.choice.target_ram is not None:
            whole = self._whole["target_ram"]
            goals = memory_goals(self.channels, whole - (whole - self.choice.target_ram) * gone)
            found |= {f"moment {number}": goal for number, goal in enumerate(goals)}
        return found

    def _ranked(self, choice: PruneSettings) -> Ranked:
        changes, looks = dict(self._changes), self.looks
        if choice.method == "taylor" and looks.loss is not None:
            for batch in looks.batches:
                given = moved(batch, device_of(self.model))
                add_(changes, products_of(self.model, partial(looks.loss, self.model, given)), self.channels)
        pairs: list[Any] = [each for each in looks.batches if isinstance(each, tuple | list) and len(each) == 2]
        inputs = [moved(each, device_of(self.model)) for each in looks.inputs] if looks_at_inputs(choice) else ()
        return rank(self.model, self.channels, choice, Given(pairs, inputs, changes=changes or None), looks.score)

    def _carry_out(self, plan: Plan, optimizer: Optimizer) -> None:
        with self.together(optimizer):
            after, found = self.cut_(plan, optimizer, self.looks.inputs if self.choice.reconstruct else ())
            self.follow(plan)
            self.channels = after
        self.note(found)
        self.plans.append(list(plan.rows()))

    def follow(self, plan: Plan) -> None:
        """Prices that were measured."""
        self._prices = {name: followed(price, plan, self.channels) for name, price in self._prices.items()}

    def state(self) -> dict[str, Any]:
        """With the place among the rounds, and what was gathered since the last."""
        mine = {"step": self.step, "whole": self._whole, "changes": self._changes}
        return {**super().state(), **mine}

    def restore(self, structure: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """With the place among the rounds."""
        self._prices = dict(self._asked)
        super().restore(structure, state)
        self.step = state["step"]
        self._whole, self._changes = dict(state["whole"]), dict(state["changes"])


def _complete(products: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """With zeros for parameters that the loss does not depend on."""
    named = model.named_parameters()
    return {name: products[name] if name in products else each.detach().new_zeros(each.shape) for name, each in named}
