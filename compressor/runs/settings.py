"""What a person may choose about a run as a whole, with every default; nothing heavy is imported, so that the command
line can read it for `--help`.
"""

from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal

from compressor.files.limits import LARGEST_GIB
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.settings import PruneSettings
from compressor.primenet.settings import REPRESENTATION, PrimeNetSettings
from compressor.routing.settings import TUNED_TRAINING, RouteSettings
from compressor.exits.settings import CNSN, DetachSettings
from compressor.training.settings import DataSettings, DistillSettings, TrainSettings

# Weights that are good already are trained on gently.
FINETUNE = replace(TrainSettings(), lr=0.01)


@dataclass(frozen=True)
class ModelSettings:
    """Which network, and how it is opened."""

    model: str | None = None  # a file; None: the architecture with random weights
    arch: str | None = None  # torchvision:NAME, timm:NAME or FILE.py:build
    arch_arg: tuple[tuple[str, Any], ...] = ()  # arguments of the architecture's function
    input: tuple[int, ...] | None = None  # (channels, height, width)
    weights: str | None = None  # keys of the weights in a file that has several, such as "model_ema"
    trust: bool = False  # let a pickle or a program run code
    max_size: float = LARGEST_GIB  # GiB that a file may take, on the disk and unpacked


@dataclass(frozen=True)
class OutputSettings:
    """Where a run leaves its files, and what it makes besides the model."""

    out: str | None = None
    overwrite: bool = False  # the folder may hold an earlier run
    latency: bool = True  # measure milliseconds on torch and ONNX Runtime, which takes some ten seconds
    onnx: bool = True  # export the result
    tensorboard: bool = False  # metrics also as TensorBoard's event files


@dataclass(frozen=True)
class InspectJob:
    """Which channels belong together."""

    model: ModelSettings
    keep: tuple[str, ...] = ()  # patterns of layer names that stay as they are
    also: tuple[str, ...] = ()  # methods of the model that are run besides forward


@dataclass(frozen=True)
class SensitivityJob(InspectJob):
    """And what it costs to prune them."""

    data: str = ""
    loading: DataSettings = field(default_factory=DataSettings)


@dataclass(frozen=True)
class PruneJob:
    """One-shot pruning, and with data fine-tuning and accuracy."""

    model: ModelSettings
    output: OutputSettings = field(default_factory=OutputSettings)
    choice: PruneSettings = field(default_factory=PruneSettings)
    data: str | None = None
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = FINETUNE
    distilling: DistillSettings = field(default_factory=DistillSettings)
    command: str = "compressor prune"  # as it was typed
    chosen: tuple[str, ...] = ()  # which settings a person chose


@dataclass(frozen=True)
class GoalSettings:
    """What AdapNet may be asked beyond the paper; all of it is ours."""

    target_macs: float | None = None  # where the changes of structure end: up to 1 a share that stays, above a number
    target_params: float | None = None
    max_drop: float | None = None  # of validation top-1, in 0..1; a plan that costs more is undone
    round_to: int | Literal["auto"] = PruneSettings.round_to  # at the end, widths that changed are multiples of this
    fill: bool = False  # fine-tuning takes the epochs that changes of structure left over, for equal budgets


@dataclass(frozen=True)
class AdaptJob:
    """AdapNet: pruning, merging and inserting filters while the network trains."""

    model: ModelSettings
    data: str
    output: OutputSettings = field(default_factory=OutputSettings)
    goals: GoalSettings = field(default_factory=GoalSettings)
    keep: tuple[str, ...] = ()  # patterns of layer names that stay as they are
    also: tuple[str, ...] = ()  # methods of the model that are run besides forward
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = field(default_factory=TrainSettings)  # what AdapNet's own settings do not say
    preset: str = "paper"
    adapnet: AdapNetSettings = PRESETS["paper"]
    distilling: DistillSettings = field(default_factory=DistillSettings)
    method: str = "adapnet"
    command: str = "compressor prune"
    chosen: tuple[str, ...] = ()  # which settings a person chose


@dataclass(frozen=True)
class TrainJob:
    """Training, from random weights."""

    model: ModelSettings
    data: str
    output: OutputSettings = field(default_factory=OutputSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    command: str = "compressor train"
    chosen: tuple[str, ...] = ()  # which settings a person chose; a network with its own training sets the others


@dataclass(frozen=True)
class FinetuneJob(TrainJob):
    """Training a network of a file further."""

    training: TrainSettings = FINETUNE
    distilling: DistillSettings = field(default_factory=DistillSettings)
    command: str = "compressor finetune"


@dataclass(frozen=True)
class ReplaceJob:
    """Replacing the first layers by PrimeNet's block, and training both."""

    model: ModelSettings
    data: str
    until: str | None = None  # the module at which the stage ends; None: the earliest that pays
    output: OutputSettings = field(default_factory=OutputSettings)
    primenet: PrimeNetSettings = field(default_factory=PrimeNetSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = REPRESENTATION
    command: str = "compressor replace"
    chosen: tuple[str, ...] = ()  # which settings a person chose


@dataclass(frozen=True)
class DetachJob:
    """Cutting sub-models out of a network, and training all of them together."""

    model: ModelSettings
    data: str | None = None
    output: OutputSettings = field(default_factory=OutputSettings)
    choice: DetachSettings = field(default_factory=DetachSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = CNSN
    command: str = "compressor detach"
    chosen: tuple[str, ...] = ()  # which settings a person chose


@dataclass(frozen=True)
class RouteJob:
    """Ways out of a network, and a router that chooses one for each image."""

    model: ModelSettings
    data: str | None = None
    output: OutputSettings = field(default_factory=OutputSettings)
    choice: RouteSettings = field(default_factory=RouteSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = TUNED_TRAINING
    command: str = "compressor route"
    chosen: tuple[str, ...] = ()  # which settings a person chose; the paper's mode sets the others


@dataclass(frozen=True)
class SweepSettings:
    """Which runs a sweep is made of: every method at every ratio."""

    methods: tuple[str, ...] = ("obs", "taylor", "adapnet")
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7)  # shares of the model's multiply-adds that go
    control: bool = True  # also train the model itself on, with the same budget
    lsep: int | None = None  # steps of AdapNet's periods; None: 2.6 periods an epoch, within 20 to 150 steps
    reconstruct: bool = PruneSettings.reconstruct  # of one-shot methods


@dataclass(frozen=True)
class SweepJob:
    """Runs over a grid, each with the same budget, and their comparison."""

    model: ModelSettings
    data: str
    output: OutputSettings = field(default_factory=OutputSettings)
    grid: SweepSettings = field(default_factory=SweepSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = FINETUNE
    distilling: DistillSettings = field(default_factory=DistillSettings)  # of every run, the control included
    command: str = "compressor sweep"
    chosen: tuple[str, ...] = ()  # which settings a person chose: AdapNet has its own for the others


@dataclass(frozen=True)
class EvaluateJob:
    """The accuracy of a model on a test set."""

    model: ModelSettings
    data: str
    loading: DataSettings = field(default_factory=DataSettings)
    device: str = TrainSettings.device
    split: Literal["test", "validation", "train"] = "test"
    exit: int | None = None  # of a model or package of several


@dataclass(frozen=True)
class ProfileJob:
    """The cost of a model."""

    model: ModelSettings
    latency: bool = False
    device: str = "cpu"
    exit: int | None = None  # of a model or package of several


@dataclass(frozen=True)
class ExportJob:
    """A model as a file for another runtime."""

    model: ModelSettings
    out: str  # a file that ends in .onnx or .pt2, or the folder of a package
    to: Literal["onnx", "pt2", "int8"] = "onnx"
    overwrite: bool = False
    opset: int | None = None  # None: the exporter's own
    exit: int | None = None  # one way through a model of several; None: all of them
    exits: Literal["one", "separate"] = "one"  # one graph with branches, or besides it a flat one for each exit
    latency: bool = True  # measure each exit of a package
    chip: Literal["x86", "x86-old", "arm", "npu"] = "x86"  # that int8 is for
    calibration_images: int = 128  # of the training set
    max_drop: float | None = None  # of test top-1 by int8, in 0..1; more is refused
    data: str | None = None  # whose validation images the file is compared on, whose test images give the accuracy
    loading: DataSettings = field(default_factory=DataSettings)


LongJob = PruneJob | AdaptJob | TrainJob | ReplaceJob | DetachJob | RouteJob | SweepJob  # what can be resumed
Job = LongJob | EvaluateJob | ProfileJob | ExportJob


def flat(job: Job) -> dict[str, Any]:
    """A job's settings on one level, each under the name of its flag."""
    found: dict[str, Any] = {}
    for name, value in vars(job).items():
        if is_dataclass(value) and not isinstance(value, type):
            found.update(asdict(value))
        elif name == "command":
            found["command"] = value.split()[1]  # without the flags: they are the other entries
            found["typed"] = value
        else:
            found[name] = value
    return found
