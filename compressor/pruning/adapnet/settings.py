"""Every number AdapNet can be told, in one frozen dataclass, and the sets of them that a name chooses.

Defaults are those of "Adaptive Pruning of Convolutional Neural Network" (Ahmadluei, Faez, Masoumi; sections 3 and 4,
table 2) where the paper gives a value, and our readings of it elsewhere. A field's name is its flag's name.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from compressor.settings import setting

Freezing = Literal["hold", "zero", "fade"]
Norm = Literal["l2", "l1"]
KseMode = Literal["minmax", "quantile"]
Coupled = Literal["prune", "skip"]
Victims = Literal["uniform", "change", "weights"]


@dataclass(frozen=True)
class AdapNetSettings:
    """Settings of one AdapNet run; epochs and periods are counts, thresholds have the unit of what they bound."""

    PANEL: ClassVar[str] = "AdapNet"

    # Phases (paper, section 3 and figure 1). A period (the paper's LSEP) is counted in optimizer steps.
    startup_epochs: int | None = setting(
        None, "Epochs before the structure changes. [0 for a trained network, else 50]", "N", 0
    )
    startup_untrained: int = setting(50, "What that is for an untrained network.", "N", 0, rare=True)
    max_epochs: int = setting(60, "Most epochs in which the structure changes.", "N", 1)
    min_epochs: int | None = setting(
        None, "Before which they do not end by themselves. [a quarter of the most]", "N", 0, rare=True
    )
    finetune_epochs: int = setting(10, "Epochs afterwards.", "N", 0)
    lsep: int | None = setting(150, "Steps of a period, at whose end the structure changes.", "STEPS", 1)
    stop_k: int = setting(3, "The phase ends when fewer filters go ...", "N", 0, rare=True)
    stop_n: int = setting(2, "... in each of so many periods running.", "N", 1, rare=True)

    # Training (paper, section 4).
    lr: float = setting(0.025, "Learning rate at the start of the schedule.", "RATE", 0)
    lr_halve_every: int = setting(15, "Epochs between halvings of the learning rate.", "N", 1, rare=True)
    lr_trained_epoch: int = setting(50, "Epoch of that schedule at which a trained network enters.", "N", 0, rare=True)
    momentum: float = setting(0.8, "Of sgd.", "X", 0, 1, rare=True)
    weight_decay: float = setting(0.01, "On all parameters.", "X", 0)
    batch_size: int = setting(128, "Images per step.", "N", 1)

    # The falling threshold of both chi-square tests (paper, table 2).
    beta_start: float = setting(0.9, "Threshold of the uniformity tests at first.", "P", 0, 1, rare=True)
    beta_step: float = setting(0.06, "By how much it falls.", "P", 0, 1, rare=True)
    beta_every: int | None = setting(None, "After how many epochs. [a twelfth of the most]", "N", 1, rare=True)
    beta_floor: float = setting(0.18, "Where it ends; lower prunes more.", "P", 0, 1, rare=True)

    # Recording: what is kept of the feature maps of a period.
    rec_batches: int = setting(8, "Batches of a period that are recorded.", "N", 1, rare=True)
    rec_maps: int = setting(3, "Feature maps kept per filter and recorded batch.", "N", 1, rare=True)
    cosine_images: int = setting(16, "Images per recorded batch that similarities come from.", "N", 1, rare=True)
    dict_size: int = setting(256, "Feature maps that are clustered; more is steadier and slower.", "N", 32, rare=True)
    dsc_size: int | None = setting(None, "Side of the maps in DSC-Net. [next power of two, 8 to 32]", "N", 4, rare=True)

    # Deep subspace clustering (equation 2; DSC-Net's values for COIL100).
    dsc_epochs: int = setting(2, "Epochs of DSC-Net in every period.", "N", 0, rare=True)
    dsc_lr: float = setting(1e-3, "Its learning rate.", "RATE", 0, rare=True)
    dsc_batch: int = setting(128, "Its batch size.", "N", 1, rare=True)
    dsc_joint: bool = setting(False, "Train its autoencoder on the self-expression's loss too.", rare=True)
    dsc_norm: Norm = setting("l2", "Norm of its coefficients that is kept small.", "NORM", rare=True)
    lambda1: float = setting(1.0, "Weight of its coefficients' norm.", "X", 0, rare=True)
    lambda2: float = setting(30.0, "Weight of its self-expression.", "X", 0, rare=True)
    alpha: float = setting(0.2, "Share of a map's coefficients that the affinity keeps.", "SHARE", 0, 1, rare=True)
    tau: float = setting(0.1, "Affinity of all maps to all, in mean degrees.", "X", 0, rare=True)

    # Clusters and their tables.
    k_min: int = setting(4, "Fewest clusters of a layer.", "N", 2, rare=True)
    k_max: int | None = setting(None, "Most clusters of a layer. [twice the classes, 16 to 32]", "N", 2, rare=True)
    exemplars: int = setting(8, "Maps that carry a cluster into the next period.", "N", 1, rare=True)
    retire_after: int = setting(5, "Periods without maps after which a cluster may go.", "N", 1, rare=True)
    retire_share: float = setting(0.01, "Fewer of a period's maps than this count as none.", "SHARE", 0, 1, rare=True)
    dist_decay: float = setting(1.0, "What is left of a filter's counts after a period.", "SHARE", 0, 1, rare=True)
    chi_s: float = setting(20.0, "Strength: a filter's counts are scaled to this; smaller prunes more.", "X", 1)
    chi_s_concepts: float | None = setting(
        None, "The same for clusters; larger: more are concepts. [chi_s]", "X", 1, rare=True
    )
    row_min: int = setting(40, "Maps seen before a filter is judged.", "N", 0, rare=True)

    # Concepts (algorithm 1).
    border_fraction: float = setting(0.2, "Share of a concept's maps that form its border.", "SHARE", 0, 1, rare=True)
    border_ratio: float = setting(0.75, "Distance from it that makes another concept.", "X", 0, rare=True)

    # Prune (algorithm 2).
    gamma1: float = setting(0.6, "KSE indicator below which a filter may go.", "X", 0, rare=True)
    kse_k: int = setting(5, "Neighbours that its entropy looks at.", "N", 1, rare=True)
    kse_rows: int = setting(256, "Kernels of the next layer that it looks at.", "N", 2, rare=True)
    kse_mode: KseMode = setting("minmax", "How the indicator is scaled.", "MODE", rare=True)
    prune_cap: float = setting(0.10, "Most of a layer's filters that go in a period.", "SHARE", 0, 1, rare=True)
    victims: Victims = setting("uniform", "Which of the filters that qualify go first.", "WHICH", rare=True)
    min_share: float = setting(0.05, "Least of a layer's filters that stay.", "SHARE", 0, 1, rare=True)
    prune_dead: bool = setting(True, "Remove filters that are never active.", rare=True)
    freeze: bool = setting(True, "Hold a filter still for one period before it goes.")
    freeze_mode: Freezing = setting(
        "hold", "Frozen filters keep their output, give zero, or fade to it.", "MODE", rare=True
    )
    compensate: bool = setting(True, "Make up for the mean of what is removed.", rare=True)

    # Merge (algorithm 3).
    merge: bool = setting(True, "Make one filter of two that are alike.")
    gamma2_factor: float = setting(2.0, "Times the mean similarity: how alike.", "X", 0, rare=True)
    gamma2_cap: float = setting(0.95, "At most so alike.", "X", 0, 1, rare=True)
    gamma3: float = setting(0.8, "Distance of their concepts below which they are alike.", "X", 0, rare=True)
    merge_cap: float = setting(0.05, "Most of a layer's filters that merge in a period.", "SHARE", 0, 1, rare=True)

    # Insert (algorithm 4).
    insert: bool = setting(True, "Add filters to layers that need more.")
    active_share: float = setting(0.3, "Of the concepts, that a filter should be active on.", "SHARE", 0, 1, rare=True)
    active_mass: float = setting(0.7, "Of its activity, that they should hold.", "SHARE", 0, 1, rare=True)
    max_width: float = setting(1.0, "Of a layer's first width, that insertion may reach.", "X", 0, rare=True)
    protection: int = setting(2, "Periods in which a new filter is not judged.", "N", 0, rare=True)

    # Residual-coupled channels, and the share of training time that concepts may take.
    coupled: Coupled = setting(
        "prune", "Channels that additions tie together: prune them, or skip them.", "HOW", rare=True
    )
    ic_budget: float | None = setting(None, "Share of training time that judging may take.", "SHARE", 0)
    units_per_lsep: int | None = setting(None, "Layers judged in each period, in turn.", "N", 1, rare=True)

    # Ours, beyond the paper: whether filters that predict a removed one stand in for it; how far the prune threshold
    # falls where a channel costs more multiply-adds, or parameters, than elsewhere, and rises where it costs fewer
    # (below 0 the other way round).
    reconstruct: bool = setting(False, "With data, refit what reads pruned channels by least squares. [adapnet: off]")
    macs_bias: float = setting(
        0.0, "Ours: how much sooner filters go that cost more MACs; below 0, later.", "X", rare=True
    )
    params_bias: float = setting(0.0, "Ours: the same for those that cost more parameters.", "X", rare=True)

    @property
    def evidence(self) -> float:
        """What each filter's counts are scaled to when a cluster is tested for being a concept."""
        return self.chi_s if self.chi_s_concepts is None else self.chi_s_concepts


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
