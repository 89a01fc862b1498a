"""What courses share, which change a network's structure in any loop: AdapNet's periods, and a criterion's rounds.

A course is armed before a batch, stepped after the optimizer's step, and told of every epoch's end. `compressor prune
--method adapnet` takes one in our own loop, `compressor.Pruner` in a user's.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn
from torch.optim import Optimizer

from compressor.graph.channels import Channels
from compressor.graph.tensors import device_of
from compressor.runs.apply import apply_plan_
from compressor.runs.stages import Callback, silent
from compressor.surgery import Plan, operate_
from compressor.surgery.edits import plan_of
from compressor.surgery.renumber import Renumbering
from compressor.surgery.snapshot import Snapshot, all_or_nothing
from compressor.training import distributed
from compressor.training.task import moved


@dataclass(frozen=True)
class Network:
    """A network that is to change as it trains."""

    model: nn.Module
    channels: Channels  # its map as it came
    example: Any  # an input as it takes it
    tell: Callback = silent  # hears of every change
    followers: Sequence[nn.Module] = ()  # copies that are edited alike


class Course(ABC):
    """`channels`, `plans`, `rows` and `refused` are the result; hooks are there only while a batch is looked at."""

    def __init__(self, network: Network) -> None:
        self.model, self.channels, self.followers = network.model, network.channels, network.followers
        self.example, self.tell = network.example, network.tell
        self.notes: list[str] = []
        self.refits = 0  # how often layers were refitted,
        self.refit = ""  # and what became of it the last time
        self.plans: list[list[dict[str, Any]]] = []  # all that was carried out, as plain data
        self.rows: list[dict[str, Any]] = []  # one each time that the structure was judged
        self.refused: dict[str, str] = {}
        self.came = network.channels
        self._weights = Snapshot.of(network.model, copies=False)

    @abstractmethod
    def follow(self, plan: Plan) -> None:
        """Before the channels change by a plan: costs that are counted by them change alike."""

    @abstractmethod
    def disarm(self) -> None:
        """Take hooks off."""

    def cut_(self, plan: Plan, optimizer: Optimizer, inputs: Sequence[Any]) -> Channels:
        """Cut the model and its followers, all of them or none, and refit what reads a channel that goes.

        By least squares, to what each gave on these inputs; without any they are cut only.
        """
        given = [moved(each, device_of(self.model)) for each in inputs]
        work = [(self.model, optimizer), *((follower, None) for follower in self.followers)]
        with all_or_nothing(*(Snapshot.of(each, its_optimizer, copies=False) for each, its_optimizer in work)):
            found = []
            for each, its_optimizer in work:
                found.append(apply_plan_(each, plan, self.channels, self.example, its_optimizer, inputs=given)[1])
                distributed.alike_(each)
            after = Renumbering.of(plan, self.channels).apply(self.channels)
        words = list(found[0].words())
        if found[0].layers:
            self.refits, self.refit = self.refits + 1, words.pop(0)
        self.notes += [note for note in words if note not in self.notes]
        return after

    def findings(self) -> dict[str, Any]:
        """What a report says of the changes, by its fields."""
        edits = tuple(row for plan in self.plans for row in plan)
        often = f"; so after the last of {self.refits} changes of structure" if self.refits > 1 else ""
        notes = (*self.notes, *([f"{self.refit}{often}"] if self.refits else []))
        return {"edits": edits, "frozen": self.channels.frozen, "refused": dict(self.refused), "notes": notes}

    def structure(self) -> dict[str, Any]:
        """The edits so far, from which `restore` makes the same network and the same channels."""
        return {"plans": self.plans}

    def state(self) -> dict[str, Any]:
        """Everything else that a resumed run needs, as plain data and tensors."""
        said = {"notes": self.notes, "refits": self.refits, "refit": self.refit}
        return {"rows": self.rows, "refused": self.refused, **said}

    def restore(self, structure: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Go back, or forward, to the structure of a checkpoint; weights are put in after."""
        self.disarm()
        self._weights.restore_()
        self.channels = self.came
        self.plans = [list(rows) for rows in structure["plans"]]
        for rows in self.plans:
            plan = plan_of(rows)
            self.follow(plan)
            self.channels = operate_(self.model, plan, self.channels, followers=self.followers)
        self.rows, self.refused, self.notes = list(state["rows"]), dict(state["refused"]), list(state["notes"])
        self.refits, self.refit = state["refits"], state["refit"]


C = TypeVar("C", bound=Course)


@dataclass(frozen=True)
class Asked(Generic[C]):
    """A course, the settings that it follows from, and over how many steps of the loop it goes."""

    course: C
    settings: dict[str, Any]
    steps: int
    epochs: int = 1  # equal parts of the steps
