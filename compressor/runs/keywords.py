"""The keywords that the verbs of the API take, for type checkers and editors: the flags of the command line.

Settings and their defaults stand in the settings dataclasses; a test holds these against them.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict


class Model(TypedDict, total=False):
    """Fields of `ModelSettings`."""

    arch: str | None
    arch_arg: Sequence[tuple[str, Any]]
    input: Sequence[int] | None
    weights: str | None
    trust: bool
    max_size: float


class Output(TypedDict, total=False):
    """Fields of `OutputSettings`."""

    overwrite: bool
    latency: bool
    onnx: bool
    tensorboard: bool


class Loading(TypedDict, total=False):
    """Fields of `DataSettings`."""

    validation: float
    seed: int
    download: bool
    bad_images: Literal["skip", "stop"]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    classes: str | None


class Training(TypedDict, total=False):
    """Fields of `TrainSettings`."""

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: float | None
    momentum: float
    nesterov: bool
    beta1: float
    beta2: float
    rho: float
    eps: float
    weight_decay: float
    schedule: Literal["cosine", "step", "constant"]
    milestones: Sequence[int]
    gamma: float
    warmup_epochs: float
    label_smoothing: float
    augment: Literal["auto", "none", "flip", "crop", "crop+flip"]
    crop_padding: int
    device: str
    amp: bool
    channels_last: bool
    compile: bool
    sync_bn: bool
    deterministic: bool
    autotune: bool
    on_nan: Literal["stop", "rollback"]
    max_rollbacks: int
    evaluate_every: int
    log_seconds: float


class Pruning(TypedDict, total=False):
    """Fields of `PruneSettings`."""

    ratio: float
    target_macs: float | None
    allocate: Literal["auto", "error", "uniform", "global"]
    round_to: int | Literal["auto"]
    min_channels: int
    ratio_for: Sequence[tuple[str, float]]
    score_images: int
    reconstruct: bool


class AdapNet(TypedDict, total=False):
    """Fields of `AdapNetSettings`."""

    startup_epochs: int | None
    startup_untrained: int
    max_epochs: int
    min_epochs: int | None
    finetune_epochs: int
    lsep: int | None
    stop_k: int
    stop_n: int
    lr_halve_every: int
    lr_trained_epoch: int
    beta_start: float
    beta_step: float
    beta_every: int | None
    beta_floor: float
    rec_batches: int
    rec_maps: int
    cosine_images: int
    dict_size: int
    dsc_size: int | None
    dsc_epochs: int
    dsc_lr: float
    dsc_batch: int
    dsc_joint: bool
    dsc_norm: Literal["l2", "l1"]
    lambda1: float
    lambda2: float
    alpha: float
    tau: float
    k_min: int
    k_max: int | None
    exemplars: int
    retire_after: int
    retire_share: float
    dist_decay: float
    chi_s: float
    chi_s_concepts: float | None
    row_min: int
    border_fraction: float
    border_ratio: float
    gamma1: float
    kse_k: int
    kse_rows: int
    kse_mode: Literal["minmax", "quantile"]
    prune_cap: float
    victims: Literal["uniform", "change", "weights"]
    min_share: float
    prune_dead: bool
    freeze: bool
    freeze_mode: Literal["hold", "zero", "fade"]
    compensate: bool
    merge: bool
    gamma2_factor: float
    gamma2_cap: float
    gamma3: float
    merge_cap: float
    insert: bool
    active_share: float
    active_mass: float
    max_width: float
    protection: int
    coupled: Literal["prune", "skip"]
    ic_budget: float | None
    units_per_lsep: int | None
    reconstruct: bool
    macs_bias: float
    params_bias: float


class Goals(TypedDict, total=False):
    """Fields of `GoalSettings`."""

    target_params: float | None
    max_drop: float | None
    fill: bool


class Distilling(TypedDict, total=False):
    """Fields of `DistillSettings`."""

    distill: bool
    distill_weight: float
    distill_temperature: float


class Detaching(TypedDict, total=False):
    """Fields of `DetachSettings`."""

    exits: int | None
    at: Sequence[str]
    targets: Sequence[float]
    bn: Literal["stats", "switchable", "shared"]
    recalibrate: bool
    loss_weights: Sequence[float]
    distill: float
    temperature: float
    keep_input: float
    keep_hidden: float
    l2: float | None
    baseline: bool


class Routing(TypedDict, total=False):
    """Fields of `RouteSettings`."""

    mode: Literal["tuned", "paper"]
    labels: Literal["outcome", "activation", "paper"]
    router: Literal["gates", "image", "argmax"]
    heads: Literal["own", "shared"]
    adapters: bool
    depths: int
    leave_after: Sequence[int]
    init: Literal["copy", "scratch"]
    skip_set: Literal["train", "paper"]
    label_epochs: int
    early_weight: float
    joint: bool
    router_epochs: int
    router_set: Literal["auto", "train", "validation"]
    router_images: int
    target_macs: float | None
    target_ms: float | None
    max_drop: float
    threshold: float | None


class PrimeNet(TypedDict, total=False):
    """Fields of `PrimeNetSettings`."""

    scales: Sequence[int]
    reduced: int
    fit: Literal["pool", "stride"]
    inference: Literal["static", "entropy"]
    local_lr: float
    local_beta1: float
    local_beta2: float
    local_eps: float
    retrain: Literal["rest", "head"]
    retrain_epochs: int
    retrain_batch_size: int


class Grid(TypedDict, total=False):
    """Fields of `SweepSettings`."""

    control: bool
    reconstruct: bool


class Exporting(TypedDict, total=False):
    """Fields of `ExportJob`."""

    to: Literal["onnx", "pt2", "int8"]
    overwrite: bool
    opset: int | None
    exit: int | None
    exits: Literal["one", "separate"]
    latency: bool
    chip: Literal["x86", "x86-old", "arm", "npu"]
    calibration_images: int
    max_drop: float | None
    data: str | None


class Evaluating(TypedDict, total=False):
    """Fields of `EvaluateJob`."""

    device: str
    exit: int | None
    split: Literal["test", "validation", "train"]


class TrainKeywords(Model, Output, Loading, Training, total=False):
    """What `train` takes."""


class FinetuneKeywords(TrainKeywords, Distilling, total=False):
    """What `finetune` takes."""


class PruneKeywords(Model, Output, Loading, Training, Distilling, Pruning, Goals, AdapNet, total=False):
    """What `prune` takes; AdapNet's for method="adapnet" only."""

    keep: Sequence[str]
    also: Sequence[str]
    preset: Literal["paper", "quick"]


class DetachKeywords(Model, Output, Loading, Training, Detaching, total=False):
    """What `detach` takes."""


class RouteKeywords(Model, Output, Loading, Training, Routing, total=False):
    """What `route` takes."""


class ReplaceKeywords(Model, Output, Loading, Training, PrimeNet, total=False):
    """What `replace` takes."""

    until: str | None


class SweepKeywords(Model, Output, Loading, Training, Distilling, Grid, total=False):
    """What `sweep` takes."""

    lsep: int | None


class EvaluateKeywords(Model, Loading, Evaluating, total=False):
    """What `evaluate` takes."""


class InspectKeywords(Model, total=False):
    """What `inspect` takes."""

    keep: Sequence[str]
    also: Sequence[str]


class ExportKeywords(Model, Loading, Exporting, total=False):
    """What `export` takes."""
