"""What a person may choose about PrimeNet, with every default; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from compressor.training.settings import TrainSettings

SCALES = (1, 3, 5, 7)  # kernel sizes that a capsule may have


@dataclass(frozen=True)
class PrimeNetSettings:
    """The block, how its capsules learn, and what is left of it for inference.

    Reference: "PrimeNet: Adaptive multi-layer deep neural structure for enhanced feature selection in early convolution
    stage", sections 3.3 and 4.1. Widths, the slope of LeakyReLU and the initial biases are those of the authors' code.
    """

    scales: tuple[int, ...] = (3, 5, 7)  # kernel size of each capsule
    reduced: int = 32  # channels that the 1x1 convolution leaves to each capsule
    fit: Literal["pool", "stride"] = "pool"  # how maps shrink: pooled behind the block, or convolved with a stride
    inference: Literal["static", "entropy"] = "static"  # the scale that won on validation data, or each image's surest
    local_lr: float = 2e-4  # of each capsule's own Adam
    local_beta1: float = 0.99
    local_beta2: float = 0.999
    local_eps: float = 1e-7
    retrain: Literal["rest", "head"] = "rest"  # second phase: all behind the block, or the last layer with weights only
    retrain_epochs: int = 50
    retrain_batch_size: int = 32


# The paper's first phase (section 4.1); the optimizer's epsilon is Keras's.
REPRESENTATION = TrainSettings(
    epochs=100,
    batch_size=200,
    optimizer="adam",
    lr=2e-4,
    beta1=0.99,
    eps=1e-7,
    weight_decay=0.0,
    schedule="constant",
    augment="none",
)
