"""What a person may choose about detachable networks, with every default; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DetachSettings:
    """How sub-models are cut out of a base and trained with it."""

    method: Literal["cnsn", "nsn"] = "cnsn"  # convolutional networks; multilayer perceptrons
    exits: int | None = None  # sub-models besides the base; None: 2 for cnsn, one for each hidden layer for nsn
    at: tuple[str, ...] = ()  # the first module of the base that each sub-model keeps
    targets: tuple[float, ...] = ()  # multiply-adds of each sub-model as a fraction of the base's
    bn: Literal["stats", "switchable", "shared"] = "stats"  # what each model has of its own: see docs/methods/detach.md
    recalibrate: bool = False  # after training, measure every model's batch-norm statistics anew
    loss_weights: tuple[float, ...] = ()  # of the base and of each sub-model; empty: 1 for all, as in the paper
    distill: float = 0.0  # share of a sub-model's loss that follows the base's scores and not the labels
    temperature: float = 4.0  # that both scores are divided by when they are compared
    keep_input: float = 0.8  # nsn: probability that dropout keeps an input, in training
    keep_hidden: float = 0.5  # nsn: that it keeps a hidden unit
    l2: float | None = None  # nsn: penalty on the base's weights; None: 9e-6 with one hidden layer, 9e-5 with more
    baseline: bool = False  # also train every model alone, from the same start with the same budget
