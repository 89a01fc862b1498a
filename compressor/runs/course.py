"""What courses share, which change a network's structure in any loop: AdapNet's periods, and a criterion's rounds.

A course is armed before a batch, stepped after the optimizer's step, and told of every epoch's end. `compressor prune
--method adapnet` takes one in our own loop, `compressor.Pruner` in a user's.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn
from torch.optim import Optimizer

from compressor.graph.channels import Channels
from compressor.graph.tensors import device_of
from compressor.pruning.reconstruction import Reconstruction
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
        self.refitted: tuple[int, str] = 0, ""  # how often layers were, and what was said of the last time
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

    def together(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Whatever is raised meanwhile leaves the model, its optimizer and its followers as they were."""
        models = [(self.model, optimizer), *((follower, None) for follower in self.followers)]
        return all_or_nothing(*(Snapshot.of(model, its_optimizer, copies=False) for model, its_optimizer in models))

    def cut_(self, plan: Plan, optimizer: Optimizer, inputs: Sequence[Any]) -> tuple[Channels, Reconstruction]:
        """Cut the model and its followers, and refit what reads a channel that goes.

        By least squares, to what each gave on these inputs; without any they are cut only. Returns the channels
        afterwards and what was refitted of the model.
        """
        given = [moved(each, device_of(self.model)) for each in inputs]
        _, found = apply_plan_(self.model, plan, self.channels, self.example, optimizer, inputs=given)
        for follower in self.followers:
            apply_plan_(follower, plan, self.channels, self.example, inputs=given)
        for each in (self.model, *self.followers):
            distributed.alike_(each)
        return Renumbering.of(plan, self.channels).apply(self.channels), found

    def note(self, found: Reconstruction) -> None:
        """Keep what is to be said of a refit, once its plan stays."""
        words = found.words()
        if found.layers:
            self.refitted, words = (self.refitted[0] + 1, words[0]), words[1:]
        self.notes += [note for note in words if note not in self.notes]

    def findings(self) -> dict[str, Any]:
        """What a report says of the changes, by its fields."""
        edits = tuple(row for plan in self.plans for row in plan)
        count, last = self.refitted
        often = f"; so after the last of {count} changes of structure" if count > 1 else ""
        notes = (*self.notes, *([f"{last}{often}"] if count else []))
        return {"edits": edits, "frozen": self.channels.frozen, "refused": dict(self.refused), "notes": notes}

    def structure(self) -> dict[str, Any]:
        """The edits so far, from which `restore` makes the same network and the same channels."""
        return {"plans": self.plans}

    def state(self) -> dict[str, Any]:
        """Everything else that a resumed run needs, as plain data and tensors."""
        return {"rows": self.rows, "refused": self.refused, "notes": self.notes, "refitted": list(self.refitted)}

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
        count, last = state["refitted"]
        self.refitted = count, last


C = TypeVar("C", bound=Course)


@dataclass(frozen=True)
class Asked(Generic[C]):
    """A course, the settings that it follows from, and over how many steps of the loop it goes."""

    course: C
    settings: dict[str, Any]
    steps: int
    epochs: int = 1  # equal parts of the steps
