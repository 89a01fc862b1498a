"""Which methods exist, and where each is: read by the command line for `--help`, so nothing heavy is imported here."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from compressor.pruning.scores import Score


@dataclass(frozen=True)
class About:
    """A method as a person who has to choose one sees it."""

    summary: str
    score: str  # what a score counts, as it stands after the number in a reason
    needs_data: bool = False


ABOUT: dict[str, About] = {
    "obs": About("least error of what reads it, refitted (block optimal brain surgeon)", "error", needs_data=True),
    "l1": About("smallest sum of absolute weights", "of the layer's mean"),
    "l2": About("smallest Euclidean norm of the weights", "of the layer's mean"),
    "bn-scale": About("smallest batch norm scale (network slimming)", "mean |scale|"),
    "fpgm": About("closest to all other filters of its layer (geometric median)", "of the layer's mean distance"),
    "taylor": About(
        "least change of the loss, to first order",
        "of the layer's mean change",
        needs_data=True,
    ),
    "random": About("by chance: the baseline that any method has to beat", "drawn from 0 to 1"),
}

# Methods that are no one-shot choice: they work while the network trains.
TRAINED: dict[str, About] = {
    "adapnet": About("prune, merge and insert filters while the network trains", "", needs_data=True),
}

# Methods that choose whole blocks in one shot, not channels.
BLOCKS: dict[str, About] = {
    "blocks": About("residual blocks left out, or one fitted convolution in their place", "", needs_data=True),
}
METHODS = ABOUT | BLOCKS | TRAINED


def is_own(method: str) -> bool:
    """Whether a method is a function of the user's: "FILE.py:score", or the name of one in memory."""
    return ":" in method


def score_of(method: str) -> "Score":
    """The function behind a method of the table; file and function have its name. obs has none: it ranks by curves."""
    name = method.replace("-", "_")
    return cast("Score", getattr(importlib.import_module(f"compressor.pruning.{name}"), name))
