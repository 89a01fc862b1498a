"""What a user may ask of a run that changes the structure as it trains: a target, and a limit to each plan's harm."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compressor.errors import UsageError
from compressor.graph.channels import Channels
from compressor.pruning.price import Goal, Price, Term, in_words, scaled
from compressor.report import units
from compressor.report.measurements import TOP
from compressor.runs.settings import GoalSettings
from compressor.runs.tuning import said
from compressor.surgery.edits import Plan
from compressor.surgery.renumber import Renumbering
from compressor.training.task import Task


@dataclass(frozen=True)
class Target:
    """Costs to come down to; None for one that was not asked for."""

    macs: float | None = None
    params: float | None = None
    ms: Goal | None = None  # milliseconds; its price is of the channels as they stand

    @staticmethod
    def of(settings: GoalSettings, channels: Channels, ms: Goal | None = None) -> "Target":
        """Shares (up to 1) become numbers. Raises UsageError for a target that is no number or is met already."""
        macs = _wanted("target_macs", settings.target_macs, channels.macs(), "MACs")
        return Target(macs, _wanted("target_params", settings.target_params, channels.params(), "parameters"), ms)

    def met(self, channels: Channels, removed: tuple[int, ...] = ()) -> bool:
        """Whether all that was asked for is reached once these channels are gone; False when nothing was."""
        wanted: list[tuple[float | None, Callable[..., float]]]
        wanted = [(self.macs, channels.macs), (self.params, channels.params)]
        wanted += [] if self.ms is None else [(self.ms.wanted, self.ms.price.without)]
        return any(limit is not None for limit, _ in wanted) and all(
            limit is None or cost(removed) <= limit for limit, cost in wanted
        )

    def after(self, plan: Plan, channels: Channels) -> "Target":
        """The same once a plan was carried out on these channels."""
        return (
            self if self.ms is None else replace(self, ms=Goal(followed(self.ms.price, plan, channels), self.ms.wanted))
        )

    def measured(self) -> dict[str, float]:
        """What a timing gave, for the checkpoint of a run: another one would not be the same."""
        return {} if self.ms is None else {"whole_ms": self.ms.price.whole(), "wanted_ms": self.ms.wanted}

    def as_measured(self, found: Mapping[str, Any]) -> "Target":
        """The same by what `measured` found before the run was broken off."""
        if self.ms is None or "whole_ms" not in found:
            return self
        factor = found["whole_ms"] / self.ms.price.whole()
        return replace(self, ms=Goal(scaled(self.ms.price, factor), found["wanted_ms"]))

    def trimmed(self, plan: Plan, channels: Channels) -> Plan:
        """As many of the plan's edits as meet the target, in their order; none when it is met, all when it is not."""
        parts = [replace(plan, edits=plan.edits[:count]) for count in range(len(plan.edits))]
        enough = bisect_left(parts, True, key=lambda part: self.met(channels, part.removed))
        return parts[enough] if enough < len(parts) else plan

    def shortfall(self, channels: Channels) -> str | None:
        """What is missing, in a line for the user; None when the target is met or there is none."""
        if (self.macs is None and self.params is None and self.ms is None) or self.met(channels):
            return None
        parts = []
        if self.macs is not None:
            parts.append(f"{units.macs(int(self.macs))} were asked for, {units.macs(channels.macs())} are left")
        if self.params is not None:
            left = units.amount(channels.params())
            parts.append(f"{units.amount(int(self.params))} parameters were asked for, {left} are left")
        if self.ms is not None:
            left = in_words(self.ms.price.whole(), "ms")
            parts.append(f"{in_words(self.ms.wanted, 'ms')} were asked for, {left} are predicted")
        return (
            f"{'; '.join(parts)}: no more filters qualified in the time given, and the network is kept as far as it "
            "came; more `max_epochs` or a smaller `chi_s` go further"
        )


def followed(price: Price, plan: Plan, channels: Channels) -> Price:
    """The price of the network after a plan, which is made for these channels."""
    numbers = Renumbering.of(plan, channels)
    terms = (Term(tuple(map(numbers.array, term.axes)), term.cost) for term in price.terms)
    return replace(price, terms=tuple(terms))


def _wanted(name: str, value: float | None, whole: int, what: str) -> float | None:
    if value is None:
        return None
    if not value > 0:
        raise UsageError(f"`{name}` is {value:g}: give a share of the {what} such as 0.5, or a number of them")
    wanted = value * whole if value <= 1 else value
    if wanted >= whole:
        raise UsageError(f"the model has {whole:,} {what}, no more than the {wanted:,.0f} of `{name}`: ask for fewer")
    return wanted


@dataclass
class Guard:
    """Refuses plans after which the network does worse by more than `undo_drop` on the validation set."""

    undo_drop: float | None = None  # of the main figure; None: every plan passes and nothing is evaluated
    measure: Callable[[], float] = lambda: 0.0  # the figure on the validation set, as the network stands
    task: Task | None = None  # whose figure it is; None: top-1
    before: float | None = None

    def ready(self) -> None:
        """Measure the network ahead of a plan, unless that was done after the plan before."""
        if self.undo_drop is not None and self.before is None:
            self.before = self.measure()

    def passes(self) -> tuple[bool, str]:
        """Whether the plan that was just carried out may stay, and what was measured."""
        if self.undo_drop is None or self.before is None:
            return True, ""
        after = self.measure()
        figure = TOP if self.task is None else self.task.figure
        verb = "fell" if figure.higher else "rose"
        text = f"validation {figure.label} {verb} from {said(figure, self.before)} to {said(figure, after)}"
        if figure.drop(self.before, after) > self.undo_drop:
            return False, text
        self.before = after
        return True, text

    def trained(self) -> None:
        """The network was trained since: the measurement no longer holds."""
        self.before = None
