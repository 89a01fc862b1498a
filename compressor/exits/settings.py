"""What a person may choose about detachable networks, with every default; nothing heavy is imported."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from compressor.settings import setting
from compressor.training.settings import DistillSettings, TrainSettings


@dataclass(frozen=True)
class DetachSettings:
    """How sub-models are cut out of a base and trained with it."""

    PANEL: ClassVar[str] = "Sub-models"

    method: Literal["cnsn", "nsn"] = setting("cnsn", "cnsn or nsn, see above.", "METHOD")
    exits: int | None = setting(None, "Sub-models besides the base. [2; nsn: one for each hidden layer]", "N", 1)
    at: tuple[str, ...] = setting(
        (), "The first module that each sub-model keeps, such as features.7,features.24.", "NAMES"
    )
    targets: tuple[float, ...] = setting(
        (), "MACs of each sub-model as shares of the base's, such as 0.5,0.25.", "SHARES"
    )
    bn: Literal["stats", "switchable", "shared", "recalibrated"] = setting(
        "stats", "What each model has of its own in batch norm; recalibrated: stats, measured again at the end.", "MODE"
    )
    loss_weights: tuple[float, ...] = setting(
        (), "Loss weights of the base and each sub-model, such as 1,0.5,0.5.", "WEIGHTS"
    )
    distill: float = setting(0.0, "Share of distillation from the base in a sub-model's loss.", "SHARE", 0, 1)
    distill_temperature: float = setting(
        DistillSettings.distill_temperature, "Softmax temperature of distillation.", "X", 0, rare=True
    )
    keep_input: float = setting(0.8, "nsn: keep probability of input dropout.", "X", 0, 1, rare=True)
    keep_hidden: float = setting(0.5, "nsn: keep probability of hidden dropout.", "X", 0, 1, rare=True)
    l2: float | None = setting(
        None, "nsn: penalty on the base's weights. [9e-5; 9e-6 with one hidden layer]", "X", 0, rare=True
    )
    baseline: bool = setting(False, "Also train every model alone with the same budget, to compare.")

    @property
    def norms(self) -> Literal["stats", "switchable", "shared"]:
        """What each model has of its own in batch norm while all of them train."""
        return "stats" if self.bn == "recalibrated" else self.bn


# How the papers train (CNSN: section 3; NSN: section 4), for 300 and 600 epochs. CNSN's paper lets the rate fall in
# steps, the last halfway through, which suits so many epochs and not a short run: that is `schedule="step"`.
CNSN = TrainSettings(batch_size=32, lr=0.01, weight_decay=6e-4, warmup_epochs=1)
NSN = TrainSettings(lr=0.3, weight_decay=0.0, schedule="step", gamma=1 / 3, augment="none")
_FALLS = {"cnsn": (1 / 6, 1 / 3, 1 / 2), "nsn": (1 / 3, 2 / 3)}  # of the epochs: where the learning rate falls


def falling(method: str, settings: TrainSettings) -> TrainSettings:
    """The training of a method whose rate falls in steps: by default, at the paper's shares of the epochs."""
    if settings.milestones or settings.schedule != "step":
        return settings
    places = {max(1, round(share * settings.epochs)) for share in _FALLS[method]}
    return replace(settings, milestones=tuple(sorted(settings.first_epoch + place for place in places)))
