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
        "tuned", "Defaults of the flags below: tuned, or as in the paper.", "MODE"
    )
    labels: Literal["outcome", "paper"] = setting(
        "outcome", "How images are labelled with a depth: by correct exits, or as in the paper by activations.", "RULE"
    )
    router: Literal["gates", "image", "argmax"] = setting(
        "gates", "Router: a gate at each early exit, or a small network on the image.", "KIND"
    )
    heads: Literal["own", "shared"] = setting(
        "own", "A small classifier at each early exit, or the network's own.", "WHICH"
    )
    depths: int = setting(4, "Number of exits, the last included.", "N", 2)
    leave_after: tuple[int, ...] = setting(
        (), "Instead: units to exit after, by their numbers in --list, such as 0,2,5.", "UNITS"
    )
    init: Literal["copy", "scratch"] = setting("copy", "Start from the model's weights, or from random ones.", "HOW")
    skip_set: Literal["train", "paper"] = "train"  # images that teach the network by label: all, or the paper's choice
    label_epochs: int = setting(0, "Further epochs with each image at its labelled depth only.", "N", 0)
    router_epochs: int = setting(30, "Epochs of training the router.", "N", 0, rare=True)
    target_macs: float | None = setting(
        None, "Mean MACs of an image: 0.6 of the network's, or 2e8 for 200 million.", "MACS"
    )
    target_ms: float | None = setting(
        None, "Instead: mean milliseconds of one image on ONNX Runtime, on this machine.", "MS", 0
    )
    threshold: float | None = setting(None, "Instead: exit score at which to stop; 0: at the first exit.", "X", 0)


# Trained weights learn early exits at a low rate.
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
    """In the paper's mode images may exit after every unit, unless units were chosen."""
    if settings.mode != "paper" or settings.leave_after:
        return settings
    return replace(settings, leave_after=tuple(range(units)))


def check(settings: RouteSettings) -> None:
    """Raise UsageError for values that make no sense for any network."""
    if settings.target_macs is not None and settings.target_macs <= 0:
        raise UsageError(f"the target is {settings.target_macs:g} MACs; give a share such as 0.6, or a number of MACs")
    if settings.target_ms is not None and settings.target_ms <= 0:
        raise UsageError(f"the target is {settings.target_ms:g} ms; give milliseconds for one image, such as 2.5")
    targets = ("threshold", "target_macs", "target_ms")
    given = [f"`{name}`" for name in targets if getattr(settings, name) is not None]
    if len(given) > 1:
        raise UsageError(f"give {' or '.join(given)}, not both: each of them chooses the threshold")
    if settings.labels == "paper" and settings.router == "gates":
        raise UsageError("`labels` paper labels some images only; `router` image or argmax labels the others")
    if settings.skip_set == "paper" and settings.labels != "paper":
        raise UsageError("`skip_set` paper trains on the images that `labels` paper chooses: give both")
