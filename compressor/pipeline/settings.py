"""What a person may choose about a run as a whole, with every default; nothing heavy is imported, so that the command
line can read it for `--help`.
"""

from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal

from compressor.methods.settings import PruneSettings
from compressor.training.settings import DataSettings, TrainSettings

# Weights that are good already are trained on gently.
FINETUNE = replace(TrainSettings(), lr=0.01)


@dataclass(frozen=True)
class ModelSettings:
    """Which network, and how it is opened."""

    model: str | None = None  # a file; None: the architecture with random weights
    arch: str | None = None  # torchvision:NAME, timm:NAME or FILE.py:build
    arch_arg: tuple[tuple[str, Any], ...] = ()  # arguments of the architecture's function
    input: tuple[int, ...] | None = None  # (channels, height, width)
    trust: bool = False  # let a pickle run code


@dataclass(frozen=True)
class OutputSettings:
    """Where a run leaves its files, and what it makes besides the model."""

    out: str | None = None
    overwrite: bool = False  # the folder may hold an earlier run
    latency: bool = True  # measure milliseconds on torch and ONNX Runtime, which takes some ten seconds
    onnx: bool = True  # export the result


@dataclass(frozen=True)
class PruneJob:
    """One-shot pruning, and with data fine-tuning and accuracy."""

    model: ModelSettings
    output: OutputSettings = field(default_factory=OutputSettings)
    choice: PruneSettings = field(default_factory=PruneSettings)
    data: str | None = None
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = FINETUNE
    command: str = "compressor prune"  # as it was typed


@dataclass(frozen=True)
class TrainJob:
    """Training, from random weights or from a file's."""

    model: ModelSettings
    data: str
    output: OutputSettings = field(default_factory=OutputSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    command: str = "compressor train"


@dataclass(frozen=True)
class EvaluateJob:
    """The accuracy of a model on a test set."""

    model: ModelSettings
    data: str
    loading: DataSettings = field(default_factory=DataSettings)
    device: str = TrainSettings.device
    split: Literal["test", "validation", "train"] = "test"


@dataclass(frozen=True)
class ProfileJob:
    """The cost of a model."""

    model: ModelSettings
    latency: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class ExportJob:
    """A model as a file for another runtime."""

    model: ModelSettings
    out: str
    overwrite: bool = False
    opset: int | None = None  # None: the exporter's own
    data: str | None = None  # whose validation images the file is compared on
    loading: DataSettings = field(default_factory=DataSettings)


Job = PruneJob | TrainJob | EvaluateJob | ProfileJob | ExportJob


def flat(job: Job) -> dict[str, Any]:
    """A job's settings on one level, each under the name of its flag."""
    found: dict[str, Any] = {}
    for name, value in vars(job).items():
        if is_dataclass(value) and not isinstance(value, type):
            found.update(asdict(value))
        elif name == "command":
            found["command"] = value.split()[1]  # without the flags: they are the other entries
        else:
            found[name] = value
    return found
