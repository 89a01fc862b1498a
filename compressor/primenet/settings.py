"""What a person may choose about PrimeNet, with every default; nothing heavy is imported."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.settings import setting
from compressor.training.settings import TrainSettings

SCALES = (1, 3, 5, 7)  # kernel sizes that a capsule may have


@dataclass(frozen=True)
class PrimeNetSettings:
    """The block, how its capsules learn, and what is left of it for inference.

    Reference: "PrimeNet: Adaptive multi-layer deep neural structure for enhanced feature selection in early convolution
    stage", sections 3.3 and 4.1. Widths, the slope of LeakyReLU and the initial biases are those of the authors' code.
    """

    PANEL: ClassVar[str] = "PrimeNet"

    scales: tuple[int, ...] = setting(
        (3, 5, 7), "Kernel sizes of the block's parallel convolutions, of 1, 3, 5 and 7.", "N,N,..."
    )
    reduced: int = 32  # input channels of each of them, after a 1x1 convolution
    fit: Literal["pool", "stride"] = setting(
        "pool", "How the block downsamples: pooling behind it, or a stride, which is cheaper.", "HOW"
    )
    inference: Literal["static", "entropy"] = setting(
        "static", "Keep the scale that is best on validation images, or choose by entropy for each image.", "HOW"
    )
    local_lr: float = setting(2e-4, "Learning rate of the local losses' Adam.", "RATE", 0)
    retrain: Literal["rest", "head"] = setting(
        "rest", "What phase two trains: everything behind the block, or the last layer.", "PART", rare=True
    )
    retrain_epochs: int = setting(50, "Epochs of the second phase, with the block frozen.", "N", 0)
    retrain_batch_size: int = setting(32, "Images per step of the second phase.", "N", 1, rare=True)


# The paper's first phase (section 4.1); the optimizer's epsilon is Keras's.
REPRESENTATION = TrainSettings(
    epochs=100,
    batch_size=200,
    optimizer="adam",
    lr=2e-4,
    optimizer_arg=(("betas", (0.99, 0.999)), ("eps", 1e-7)),
    weight_decay=0.0,
    schedule="constant",
    augment="none",
)
