"""Every number AdapNet can be told, in one frozen dataclass, and the sets of them that a name chooses.

Defaults are those of "Adaptive Pruning of Convolutional Neural Network" (Ahmadluei, Faez, Masoumi; sections 3 and 4,
table 2) where the paper gives a value, and our readings of it elsewhere. A field's name is its flag's name.
"""

from dataclasses import dataclass, replace
from typing import Literal

Freezing = Literal["hold", "zero", "fade"]
Norm = Literal["l2", "l1"]
KseMode = Literal["minmax", "quantile"]
Coupled = Literal["prune", "skip"]
Victims = Literal["uniform", "change", "weights"]


@dataclass(frozen=True)
class AdapNetSettings:
    """Settings of one AdapNet run; epochs and periods are counts, thresholds have the unit of what they bound."""

    # Phases (paper, section 3 and figure 1). A period (the paper's LSEP) is counted in optimizer steps.
    startup_epochs: int | None = None  # None: startup_untrained for a fresh network, 0 for a trained one
    startup_untrained: int = 50
    max_epochs: int = 60  # of the second phase, in which the structure changes
    min_epochs: int | None = None  # before which the stop rule is not asked; None: a quarter of max_epochs
    finetune_epochs: int = 10
    lsep: int | None = 150  # None: 2.6 periods an epoch, as the paper has on CIFAR, within 20 to 150 steps
    stop_k: int = 3
    stop_n: int = 2

    # Training (paper, section 4).
    lr: float = 0.025
    lr_halve_every: int = 15
    lr_trained_epoch: int = 50  # where a trained network enters the schedule
    momentum: float = 0.8
    weight_decay: float = 0.01
    batch_size: int = 128

    # The falling threshold of both chi-square tests (paper, table 2).
    beta_start: float = 0.9
    beta_step: float = 0.06
    beta_every: int | None = None  # epochs; None: a twelfth of max_epochs, so that the floor is always reached
    beta_floor: float = 0.18

    # Recording: what is kept of the feature maps of a period.
    rec_batches: int = 8
    rec_maps: int = 3  # per filter and recording batch
    cosine_images: int = 16  # per recording batch
    dict_size: int = 256  # maps that are clustered in the sample; the others are assigned to its clusters
    dsc_size: int | None = None  # side of the maps in DSC-Net; None: the next power of two, 8 to 32

    # Deep subspace clustering (equation 2; DSC-Net's values for COIL100).
    dsc_epochs: int = 2
    dsc_lr: float = 1e-3
    dsc_batch: int = 128
    dsc_joint: bool = False  # the autoencoder is trained on the self-expression's loss too
    dsc_norm: Norm = "l2"  # of the coefficients
    lambda1: float = 1.0
    lambda2: float = 30.0
    alpha: float = 0.2  # share of a column's coefficients that the affinity keeps
    tau: float = 0.1  # connects the graph

    # Clusters and their tables.
    k_min: int = 4
    k_max: int | None = None  # None: twice the classes, within 16 to 32
    exemplars: int = 8
    retire_after: int = 5
    retire_share: float = 0.01
    dist_decay: float = 1.0
    chi_s: float = 20.0
    chi_s_concepts: float | None = None  # of the columns' test; None: chi_s
    row_min: int = 40

    # Concepts (algorithm 1).
    border_fraction: float = 0.2
    border_ratio: float = 0.75

    # Prune (algorithm 2).
    gamma1: float = 0.6
    kse_k: int = 5
    kse_rows: int = 256
    kse_mode: KseMode = "minmax"
    prune_cap: float = 0.10
    victims: Victims = "uniform"  # who goes first when more qualify than may: see docs
    min_share: float = 0.05
    prune_dead: bool = True
    freeze: bool = True
    freeze_mode: Freezing = "hold"
    compensate: bool = True

    # Merge (algorithm 3).
    merge: bool = True
    gamma2_factor: float = 2.0
    gamma2_cap: float = 0.95
    gamma3: float = 0.8
    merge_cap: float = 0.05

    # Insert (algorithm 4).
    insert: bool = True
    active_share: float = 0.3  # of the concepts, that may hold
    active_mass: float = 0.7  # of a filter's activity
    max_width: float = 1.0  # of the width the layer came with
    protection: int = 2

    # Residual-coupled channels, and the share of training time that concepts may take.
    coupled: Coupled = "prune"
    ic_budget: float | None = None
    units_per_lsep: int | None = None

    # Ours, beyond the paper: whether filters that predict a removed one stand in for it; how far the prune threshold
    # falls where a channel costs more multiply-adds, or parameters, than elsewhere, and rises where it costs fewer
    # (below 0 the other way round).
    reconstruct: bool = False
    macs_bias: float = 0.0
    params_bias: float = 0.0

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
