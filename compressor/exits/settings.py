"""What a person may choose about detachable networks, with every default; nothing heavy is imported."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

from compressor.training.settings import TrainSettings


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


# How the papers train (CNSN: section 3; NSN: section 4), apart from the number of epochs. CNSN's paper lets the rate
# fall in steps, the last halfway through, which suits its 300 epochs and not a short run: that is `schedule="step"`.
CNSN = TrainSettings(batch_size=32, lr=0.01, weight_decay=6e-4, warmup_epochs=1)
NSN = TrainSettings(lr=0.3, weight_decay=0.0, schedule="step", gamma=1 / 3, augment="none")
PAPER_EPOCHS = {"cnsn": 300, "nsn": 600}
_FALLS = {"cnsn": (1 / 6, 1 / 3, 1 / 2), "nsn": (1 / 3, 2 / 3)}  # of the epochs: where the learning rate falls


def training_for(method: str, typed: TrainSettings, chosen: Iterable[str]) -> TrainSettings:
    """The paper's training for a method, with what a person chose: the fields of `typed` that `chosen` names.

    Where the rate falls in steps and no epochs are chosen for them, it does so at the paper's shares of the epochs.
    """
    known = {field.name for field in fields(TrainSettings)}
    ours = NSN if method == "nsn" else CNSN
    settings = replace(ours, **{name: getattr(typed, name) for name in chosen if name in known})
    if settings.milestones or settings.schedule != "step":
        return settings
    places = {max(1, round(share * settings.epochs)) for share in _FALLS[method]}
    first = settings.first_epoch
    return replace(settings, milestones=tuple(sorted(first + place for place in places)))
