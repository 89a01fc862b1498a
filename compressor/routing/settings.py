"""What a person may choose about routing, with every default; nothing heavy is imported."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from compressor.errors import UsageError
from compressor.training.settings import TrainSettings


@dataclass(frozen=True)
class RouteSettings:
    """Where images may leave, how they are labelled, what decides, and what is trained."""

    mode: Literal["tuned", "paper"] = "tuned"  # paper: the paper's letter in what follows, see `paper`
    labels: Literal["outcome", "activation", "paper"] = "outcome"  # see docs/methods/route.md
    router: Literal["gates", "image", "argmax"] = "gates"  # argmax: the image router, its most probable label
    heads: Literal["own", "shared"] = "own"  # a small head for each depth, or the network's head behind shortcuts
    adapters: bool = False  # learned 1x1 convolutions where a skipped unit changes the shape (with shared heads)
    depths: int = 4  # places where images may leave, the end included; spread evenly over the MACs
    leave_after: tuple[int, ...] = ()  # instead of `depths`: the unit numbers of --list
    init: Literal["copy", "scratch"] = "copy"  # the network's weights, or new ones
    skip_set: Literal["train", "paper"] = "train"  # images that the skipping network learns from by their labels
    label_epochs: int = 0  # with outcome: epochs with each image at its labelled depth only, after those at all depths
    early_weight: float = 0.3  # of each earlier depth's loss, where the last one's counts 1
    joint: bool = False  # the router learns along with the network, not only afterwards
    router_epochs: int = 30
    router_set: Literal["auto", "train", "validation"] = "auto"  # auto: train, unless those are learnt by heart
    router_images: int = 100_000  # at most so many images teach the gates
    target_macs: float | None = None  # mean MACs: up to 1 a share of the network's, above 1 a number
    target_ms: float | None = None  # instead: mean milliseconds of one image on ONNX Runtime, on this machine
    max_drop: float = 0.002  # without a target: top-1 that may be lost on the validation set, as a fraction
    threshold: float | None = None  # instead of all: the router's probability from which an image may leave


# Weights that are good already learn new ways out gently.
TUNED_TRAINING = replace(TrainSettings(), lr=0.01)

# The paper's training of CNN 3: Keras's RMSprop. Our reading of what it leaves open: no decay, no augmentation.
PAPER_TRAINING = TrainSettings(
    epochs=20,
    batch_size=128,
    optimizer="rmsprop",
    lr=1e-3,
    rho=0.9,
    eps=1e-7,
    weight_decay=0.0,
    schedule="constant",
    augment="none",
)


def paper(settings: RouteSettings, depths: int, chosen: Collection[str] = ()) -> RouteSettings:
    """The paper's letter for a network of so many units: all of them depths, one head, labels by activations.

    What a person chose otherwise (names of fields) stays.
    """
    letter = {
        "labels": "paper",
        "router": "argmax",
        "heads": "shared",
        "adapters": False,
        "leave_after": tuple(range(depths)),
        "threshold": 0.0,
    }
    if {"target_macs", "target_ms"} & set(chosen):
        del letter["threshold"]
    wanted = {name: value for name, value in letter.items() if name not in chosen}
    return replace(settings, **wanted)  # type: ignore[arg-type]


def training_for(mode: str, training: TrainSettings, chosen: Collection[str]) -> TrainSettings:
    """The training of a mode, with what a person chose (names of fields)."""
    if mode != "paper":
        return training
    return replace(PAPER_TRAINING, **{name: getattr(training, name) for name in chosen if hasattr(training, name)})


def check(settings: RouteSettings, chosen: Collection[str] = ()) -> None:
    """Raise UsageError for values that make no sense for any network, once the mode has set what was not chosen."""
    if settings.mode == "paper":
        settings = paper(settings, 2, chosen)
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
