"""Keeps the time that concepts take within a share of training time, by judging fewer groups at a boundary."""

from typing import Any

from compressor.pruning.adapnet.settings import AdapNetSettings

WORTH_A_WARNING = 0.25


class Governor:
    """Says which groups are judged at the next boundary: all, or some of them in turn.

    With `units_per_lsep` the number is the user's, of whatever cost, and runs can be repeated; with `ic_budget` it
    follows from the times of the first period, which differ from run to run.
    """

    def __init__(self, settings: AdapNetSettings) -> None:
        self.settings = settings
        self.together = settings.units_per_lsep
        self.next = 0
        self.overhead: float | None = None  # time of boundaries by time of training, for all groups

    def due(self, names: list[str]) -> list[str]:
        """The groups to judge at the end of the period that begins now."""
        if self.together is None or self.together >= len(names):
            return names
        start = self.next % len(names)
        return [names[(start + i) % len(names)] for i in range(self.together)]

    def passed(self, names: list[str], judged: int, training: float, boundary: float) -> str | None:
        """Note a boundary that judged so many of the groups, and the seconds it took; returns a line for the user."""
        self.next += judged
        if self.overhead is not None or judged == 0:
            return None
        each = boundary / judged
        self.overhead = len(names) * each / training
        budget = self.settings.ic_budget
        if self.together is None and budget is not None:
            self.together = max(1, int(budget * training / each))
            return (
                f"concepts of {min(self.together, len(names))} of {len(names)} groups are judged in each period, to "
                f"stay within {budget:.0%} of training time; --units-per-lsep {self.together} repeats this run"
            )
        if self.together is None and self.overhead > WORTH_A_WARNING:
            return f"concepts take {self.overhead:.0%} of training time; --ic-budget {WORTH_A_WARNING} bounds it"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"together": self.together, "next": self.next, "overhead": self.overhead}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.together, self.next, self.overhead = state["together"], state["next"], state["overhead"]
