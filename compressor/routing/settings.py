"""What a person may choose about routing, with every default; nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from compressor.errors import UsageError
from compressor.settings import setting
from compressor.training.settings import TrainSettings


@dataclass(frozen=True)
class RouteSettings:
    """Where images may leave, how they are labelled, what decides, and what is trained."""

    PANEL: ClassVar[str] = "Routing"

    mode: Literal["tuned", "paper"] = setting(
        "tuned", "What the flags below stand at: tuned by us, or the paper's letter.", "MODE"
    )
    labels: Literal["outcome", "activation", "paper"] = setting(
        "outcome", "How images get their depth: what is right where, or activations.", "RULE"
    )
    router: Literal["gates", "image", "argmax"] = setting(
        "gates", "What decides: a gate at each way out, or a small network that sees the image.", "KIND"
    )
    heads: Literal["own", "shared"] = setting(
        "own", "A small classifier at each way out, or the network's own.", "WHICH"
    )
    adapters: bool = setting(
        False, "Shared heads: learned 1x1 convolutions around units that change the shape.", rare=True
    )
    depths: int = setting(4, "Places where images may leave, the end included.", "N", 2)
    leave_after: tuple[int, ...] = setting(
        (), "Instead: the units to leave after, by their numbers in --list, such as 0,2,5.", "UNITS"
    )
    init: Literal["copy", "scratch"] = setting("copy", "Start from the model's weights, or draw new ones.", "HOW")
    skip_set: Literal["train", "paper"] = setting(
        "train", "Images that teach the network by label: all, or the paper's choice.", "SET", rare=True
    )
    label_epochs: int = setting(0, "More epochs, with each image at its labelled depth only.", "N", 0)
    early_weight: float = setting(0.3, "Of each earlier depth's loss; the last one's is 1.", "X", 0, rare=True)
    joint: bool = setting(False, "Train the router along with the network, not afterwards.")
    router_epochs: int = setting(30, "Epochs of the router alone.", "N", 0, rare=True)
    router_set: Literal["auto", "train", "validation"] = setting(
        "auto", "Images that teach the router.", "SET", rare=True
    )
    router_images: int = setting(100_000, "At most so many of them.", "N", 4, rare=True)
    target_macs: float | None = setting(
        None, "Mean MACs of an image: 0.6 of the network's, or 2e8 for 200 million.", "MACS"
    )
    target_ms: float | None = setting(
        None, "Instead: mean milliseconds of one image on ONNX Runtime, on this machine.", "MS", 0
    )
    max_drop: float = setting(0.002, "Without a target: validation top-1 that may be lost, as a fraction.", "X", 0, 1)
    threshold: float | None = setting(
        None, "Instead: leave where the router is at least so sure; 0 never goes on.", "X", 0
    )


# Weights that are good already learn new ways out gently.
TUNED_TRAINING = replace(TrainSettings(), lr=0.01)

# The paper's training of CNN 3: Keras's RMSprop. Our reading of what it leaves open: no decay, no augmentation.
PAPER_TRAINING = TrainSettings(
    epochs=20,
    batch_size=128,
    optimizer="rmsprop",
    lr=1e-3,
    optimizer_arg=(("alpha", 0.9), ("eps", 1e-7)),
    weight_decay=0.0,
    schedule="constant",
    augment="none",
)


def paper(given: Mapping[str, Any]) -> RouteSettings:
    """The paper's letter, before what a person chose: one head, labels by activations, every unit a depth.

    Which units there are the network says (`every_unit`). A target in `given` takes the place of the threshold.
    """
    at_once = not {"target_macs", "target_ms"} & given.keys()
    return RouteSettings("paper", "paper", "argmax", "shared", threshold=0.0 if at_once else None)


def every_unit(settings: RouteSettings, units: int) -> RouteSettings:
    """In the paper's mode images may leave after every unit, where nobody chose."""
    if settings.mode != "paper" or settings.leave_after:
        return settings
    return replace(settings, leave_after=tuple(range(units)))


def check(settings: RouteSettings) -> None:
    """Raise UsageError for values that make no sense for any network."""
    if settings.depths < 2:
        raise UsageError(f"depths is {settings.depths}: images need two or more places to leave at, the end is one")
    if settings.target_macs is not None and settings.target_macs <= 0:
        raise UsageError(f"the target is {settings.target_macs:g} MACs; give a share such as 0.6, or a number of MACs")
    if settings.target_ms is not None and settings.target_ms <= 0:
        raise UsageError(f"the target is {settings.target_ms:g} ms; give milliseconds for one image, such as 2.5")
    targets = (settings.threshold, settings.target_macs, settings.target_ms)
    if sum(each is not None for each in targets) > 1:
        raise UsageError(
            "give one of --threshold, --target-macs and --target-ms, not both: the threshold is chosen for a target"
        )
    if settings.early_weight <= 0:
        raise UsageError(f"early_weight is {settings.early_weight:g}: earlier depths would learn nothing; give 0.3")
    if not 0 <= settings.max_drop < 1:
        raise UsageError(f"max_drop is {settings.max_drop:g}; give a fraction of the images, such as 0.002")
    if settings.labels == "paper" and settings.router == "gates":
        raise UsageError("--labels paper labels some images only; --router image or argmax labels the others")
    if settings.skip_set == "paper" and settings.labels != "paper":
        raise UsageError("--skip-set paper trains on the images that --labels paper chooses: give both")
