"""What a person may choose about data and training, with every default; nothing heavy is imported, so that the
command line can read it for `--help`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from compressor.settings import setting

# Data sets by their names -> the function of `named_sets` that reads one from its folder.
NAMED_SETS = {
    "mnist": "read_mnist",
    "fashion-mnist": "read_fashion_mnist",
    "cifar10": "read_cifar10",
    "cifar100": "read_cifar100",
    "svhn": "read_svhn",
}
SPECS = ("digits", *(f"{name}:DIR" for name in NAMED_SETS), "folder:DIR")  # how data are named


@dataclass(frozen=True)
class DataSettings:
    """How a data set is opened."""

    PANEL: ClassVar[str] = "Data"

    task: str | None = setting(
        None, "In place of --data, your own data, loss and measure; see compressor new-task.", "FILE.py:CLASS"
    )
    validation: float = setting(0.1, "Share of the training set held out for validation.", "SHARE", 0, 1, rare=True)
    seed: int = setting(0, "Random seed.", "N")
    download: bool = setting(False, "Download a data set that is missing.")
    bad_images: Literal["skip", "stop"] = setting(
        "skip", "Where an image cannot be read: skip and report it, or stop.", "WHAT", rare=True
    )
    decode_cache: float | None = setting(
        None, "Keep decoded images on disk, in up to so many GB, of a folder that is too large for memory.", "GB", 0,
        rare=True,
    )  # fmt: skip
    mean: tuple[float, ...] | None = setting(
        None, "Mean of each channel of pixels in 0..1, such as 0.485,0.456,0.406.", "NUMBERS", rare=True
    )
    std: tuple[float, ...] | None = setting(
        None, "Standard deviation of each channel. Mean and deviation are saved with the model.", "NUMBERS", rare=True
    )
    classes: str | None = setting(
        None, "JSON or text file that maps class folders to outputs of a network with more classes.", "FILE"
    )


@dataclass(frozen=True)
class DistillSettings:
    """Whether training also follows the scores of the network as it came."""

    PANEL: ClassVar[str] = "Training"

    distill: bool = setting(False, "Distill from the original network, besides the labels.")
    distill_weight: float = 0.5  # share of that in the loss
    distill_temperature: float = setting(4.0, "Softmax temperature of distillation.", "X", 0, rare=True)


@dataclass(frozen=True)
class TrainSettings:
    """How one phase of training runs."""

    PANEL: ClassVar[str] = "Training"

    epochs: int = setting(10, "Number of training epochs.", "N", 0)
    first_epoch: int = 0  # the phase's place in a longer run: data order, draws and `milestones` count from epoch 0
    batch_size: int = setting(128, "Images per step.", "N", 1)
    seed: int = setting(0, "Random seed.", "N")

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = setting("sgd", "Optimizer.", "NAME")
    lr: float | None = setting(None, "Learning rate at the start of the schedule.", "RATE", 0)
    momentum: float = 0.9  # of sgd, unless `optimizer_arg` has another
    optimizer_arg: tuple[tuple[str, Any], ...] = setting(
        (), "Optimizer argument by torch's name, such as momentum=0.8. Repeatable.", "KEY=VALUE", rare=True, many=True
    )
    weight_decay: float = setting(5e-4, "Weight decay, on all parameters.", "X", 0)

    schedule: Literal["cosine", "step", "constant"] = setting("cosine", "Learning-rate schedule.", "NAME")
    milestones: tuple[int, ...] = ()  # epochs at which "step" lowers the rate; none: halfway and at three quarters
    gamma: float = 0.1  # what it lowers it by
    warmup_epochs: float = setting(0.0, "Epochs of linear warm-up from zero to the learning rate.", "N", 0, rare=True)

    label_smoothing: float = setting(0.0, "Label smoothing.", "SHARE", 0, 1, rare=True)
    augment: Literal["auto", "none", "flip", "crop", "crop+flip"] = setting(
        "auto", "Data augmentation; auto: what suits the data set.", "NAME"
    )

    device: str = setting("auto", "auto, cpu, cuda or cuda:NUMBER.", "DEVICE")
    channels_last: bool = True  # the layout convolutions are fastest in, while the phase lasts; if the model takes it
    sync_bn: bool = setting(False, "Synchronized batch norm under torchrun.", rare=True)
    deterministic: bool = setting(False, "Deterministic algorithms on a GPU, which are slower.", rare=True)
    autotune: bool = True  # let cuDNN try its algorithms on every new shape; off where shapes change often

    on_nan: Literal["stop", "rollback"] = setting(
        "stop",
        "Where the loss is not finite: stop, or roll back to the last checkpoint at half the rate.",
        "WHAT",
        rare=True,
    )
    evaluate_every: int = setting(1, "Epochs between evaluations on the validation set; 0: never.", "N", 0, rare=True)
    log_seconds: float = 0.5  # between progress events; each reads the loss from the device once
