"""What a person may choose about AdapNet, and the sets of it that a name chooses.

Defaults are those of "Adaptive Pruning of Convolutional Neural Network" (Ahmadluei, Faez, Masoumi; sections 3 and 4,
table 2) where the paper gives a value, and our readings of it elsewhere. What nobody has a reason to turn stands as a
constant beside its equation.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from compressor.settings import setting


@dataclass(frozen=True)
class AdapNetSettings:
    """Settings of one AdapNet run; epochs and periods are counts, thresholds have the unit of what they bound."""

    PANEL: ClassVar[str] = "AdapNet"

    # Phases (paper, section 3 and figure 1). A period (the paper's LSEP) is counted in optimizer steps.
    startup_epochs: int | None = setting(
        None, "Epochs before pruning begins. [0 for a trained network, else 50]", "N", 0
    )
    startup_untrained: int = 50  # what that is for an untrained network
    max_epochs: int = setting(60, "Most epochs of pruning.", "N", 1)
    finetune_epochs: int = setting(10, "Epochs of fine-tuning afterwards.", "N", 0)
    lsep: int | None = setting(150, "Optimizer steps between pruning steps.", "STEPS", 1)

    # Training (paper, section 4).
    lr: float = setting(0.025, "Learning rate at the start of the schedule.", "RATE", 0)
    lr_halve_every: int = setting(15, "Epochs between halvings of the learning rate.", "N", 1, rare=True)
    lr_trained_epoch: int = 50  # of that schedule, at which a trained network enters
    weight_decay: float = setting(0.01, "Weight decay, on all parameters.", "X", 0)
    batch_size: int = setting(128, "Images per step.", "N", 1)

    # The falling threshold of both chi-square tests (paper, table 2).
    beta_start: float = 0.9  # p-value that it begins at
    beta_step: float = 0.06  # how much it falls at a time

    # Clusters of the feature maps of a period, and the tables of which filter is active on which.
    dict_size: int = 256  # maps to cluster; more is steadier and slower
    chi_s: float = setting(20.0, "What a filter's counts are scaled to in the test; smaller prunes more.", "X", 1)
    chi_s_concepts: float | None = setting(
        None, "The same for clusters; larger: more are concepts. [chi_s]", "X", 1, rare=True
    )

    # Prune (algorithm 2).
    prune_cap: float = setting(0.10, "Largest share of a layer's filters pruned in one step.", "SHARE", 0, 1, rare=True)
    # Of more than may go, first: the most equally active, or those whose removal changes the next layer least.
    victims: Literal["uniform", "change"] = "uniform"
    min_share: float = setting(0.05, "Smallest share of a layer's filters to keep.", "SHARE", 0, 1, rare=True)
    freeze: bool = setting(True, "Freeze a filter for one interval before it is pruned.")

    # Merge (algorithm 3).
    merge: bool = setting(True, "Merge similar filters.")
    merge_cap: float = 0.05  # largest share of a layer's filters merged in one step

    # Insert (algorithm 4).
    insert: bool = setting(True, "Add filters to layers that need more.")
    max_width: float = 1.0  # largest width that insertion may reach, relative to the original

    # Ours, beyond the paper. With `params_bias` the prune threshold falls where a channel costs more parameters than
    # elsewhere, and rises where it costs fewer (below 0 the other way round).
    reconstruct: bool = setting(False, "Least-squares reconstruction of layers that read pruned filters.")
    params_bias: float = 0.0

    @property
    def evidence(self) -> float:
        """What each filter's counts are scaled to when a cluster is tested for being a concept."""
        return self.chi_s if self.chi_s_concepts is None else self.chi_s_concepts


def in_epochs(settings: AdapNetSettings, epochs: int) -> AdapNetSettings:
    """The settings for a trained network and so many epochs in all: a quarter, one at least, is for fine-tuning."""
    fine = max(1, epochs // 4)
    return replace(settings, startup_epochs=0, max_epochs=max(1, epochs - fine), finetune_epochs=fine)


Preset = Literal["auto", "paper", "quick", "short"]


def resolved(name: Preset, *, trained: bool) -> Preset:
    """The preset that "auto" stands for: short for a network that comes trained, else paper. Others stay."""
    return name if name != "auto" else "short" if trained else "paper"


PRESETS: dict[str, AdapNetSettings] = {
    "paper": AdapNetSettings(),
    # Minutes on two CPU cores: short phases; learning rate and decay of a short run, in which the paper's strong decay
    # (made for 120 epochs) would mostly shrink the weights.
    "quick": replace(
        AdapNetSettings(),
        startup_untrained=5,
        max_epochs=12,
        finetune_epochs=3,
        lsep=None,
        lr=0.02,
        lr_halve_every=5,
        lr_trained_epoch=0,
        weight_decay=5e-4,
    ),
}
# For a trained network and few epochs, what our benchmarks win with: the structure changes in the first of four epochs,
# in ten periods. The threshold starts lower, counts are scaled so that more filters qualify at it; no
# layer loses more than seven filters in ten, none grows that has more than four.
PRESETS["short"] = replace(
    PRESETS["quick"],
    batch_size=50,
    max_epochs=1,
    beta_start=0.6,
    beta_step=0.12,
    chi_s=5.0,
    chi_s_concepts=100.0,
    prune_cap=0.25,
    merge_cap=0.01,
    min_share=0.3,
    max_width=0.4,
    victims="change",
    reconstruct=True,
    lr=0.03,
    lr_halve_every=1,
)
