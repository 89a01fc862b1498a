"""What a person may choose about data and training, with every default; nothing heavy is imported, so that the
command line can read it for `--help`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataSettings:
    """How a data set is opened."""

    validation: float = 0.1  # share of the training set, per class, that decisions look at
    seed: int = 0  # of the validation split
    download: bool = False  # fetch a named set that is missing
    bad_images: Literal["skip", "stop"] = "skip"  # an image that cannot be read: leave it out and name it, or stop
    mean: tuple[float, ...] | None = None  # of each channel, of pixels scaled to 0..1; None: the model's or the data's
    std: tuple[float, ...] | None = None  # deviation, given together with the mean
    classes: str | None = None  # file that says which output each class folder has; None: matched by name or order


@dataclass(frozen=True)
class DistillSettings:
    """Whether training also follows the scores of the network as it came."""

    distill: bool = False  # AdapNet on an untrained network: from its copy after the start-up
    distill_weight: float = 0.5  # share of the loss, in 0..1
    distill_temperature: float = 4.0


@dataclass(frozen=True)
class TrainSettings:
    """How one phase of training runs."""

    epochs: int = 10
    first_epoch: int = 0  # the phase's place in a longer run: data order, draws and `milestones` count from epoch 0
    batch_size: int = 128
    seed: int = 0

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    lr: float | None = None  # at the start of the schedule; None: 0.05 for sgd, 0.001 for the others
    momentum: float = 0.9  # of sgd
    nesterov: bool = False  # of sgd
    beta1: float = 0.9  # of adam and adamw
    beta2: float = 0.999  # of adam and adamw
    rho: float = 0.99  # of rmsprop (Keras has 0.9)
    eps: float = 1e-8  # of adam, adamw and rmsprop
    weight_decay: float = 5e-4  # on all parameters

    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[int, ...] = ()  # epochs at which "step" multiplies by gamma; empty: at 1/2 and 3/4 of the phase
    gamma: float = 0.1
    warmup_epochs: float = 0.0  # linear, from nothing to lr

    label_smoothing: float = 0.0
    augment: Literal["auto", "none", "flip", "crop", "crop+flip"] = "auto"  # auto: what suits the data set
    crop_padding: int = 4  # pixels of black on every side, of which the random crop takes some

    device: str = "auto"  # a GPU where there is one; or "cpu", "cuda:1"
    amp: bool = True  # bfloat16 autocast, on GPUs that have it; the CPU always computes in float32
    channels_last: bool = True  # the layout convolutions are fastest in, while the phase lasts; if the model takes it
    compile: bool = False  # torch.compile; every change of the model's structure compiles again
    sync_bn: bool = False  # several processes: batch norm over the whole batch, not over each one's part
    deterministic: bool = False  # the same run twice gives the same weights on a GPU too; slower (the CPU always does)
    autotune: bool = True  # let cuDNN try its algorithms on every new shape; off where shapes change often

    on_nan: Literal["stop", "rollback"] = "stop"  # rollback: to the last checkpoint, with half the learning rate
    max_rollbacks: int = 3
    evaluate_every: int = 1  # epochs between looks at the validation set; 0: never
    log_seconds: float = 0.5  # between progress events; each reads the loss from the device once
