"""What jobs of verbs share, and those of verbs that only train a model or look at it; light, for `--help`'s sake."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, is_dataclass
from typing import Any, ClassVar, Literal, Self

from compressor.errors import UsageError
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings, PromiseSettings, TimeSettings
from compressor.settings import Job, setting
from compressor.training.settings import SPECS, DataSettings, DistillSettings, TrainSettings

# What a data set is called, for the verbs that cannot do without one and for those that can.
DATA: dict[str, Any] = {
    "text": f"{', '.join(SPECS[:-1])} or {SPECS[-1]}.",
    "metavar": "DATA",
    "panel": "Data",
}


_EPOCHS = ("epochs", "startup_epochs", "max_epochs", "finetune_epochs")  # settings that `for_` chooses


class ModelJob(Job):
    """A job on a network of a file, or of an architecture with random weights."""

    ALIASES: ClassVar[Mapping[str, str]] = {"task": "data"}  # a data set, or code of one's own that brings its data

    model: ModelSettings

    def completed(self) -> Self:
        """The job itself; raises UsageError where there is neither file nor architecture."""
        if self.model.model is None and self.model.arch is None:
            raise UsageError("no model: give a file, or `arch` for an architecture with random weights")
        return self


@dataclass(frozen=True)
class RunJob(ModelJob):
    """What every verb takes that leaves a run in a folder; a subclass adds what it alone has."""

    RUN: ClassVar[str] = ""  # the module of compressor/runs that carries it out, and the class there

    model: ModelSettings
    data: str = setting(MISSING, **DATA)
    output: OutputSettings = field(default_factory=OutputSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    promise: PromiseSettings = field(default_factory=PromiseSettings)
    time: TimeSettings = field(default_factory=TimeSettings)
    command: str = "compressor"  # as it was typed
    chosen: tuple[str, ...] = ()  # which settings a person chose

    def completed(self) -> Self:
        """The job itself; raises UsageError where epochs are asked for twice."""
        given = next((name for name in _EPOCHS if name in self.chosen), None)
        if self.time.for_ is not None and given is not None:
            raise UsageError(f"`for_` and `{given}` both say how long it trains: leave one of them out")
        if self.output.precision == "int8" and self.data is None:
            raise UsageError("`precision` int8 calibrates on images, which needs `data`: give some, or leave it out")
        return super().completed()

    def check_trained(self, verb: str) -> None:
        """Raise UsageError where the network is none of a file."""
        if self.model.model is None:
            raise UsageError(f"{verb} starts from a trained model: give its file, after compressor train made it")


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


@dataclass(frozen=True)
class TrainJob(RunJob):
    """Training, from random weights."""

    RUN: ClassVar[str] = "train.TrainRun"
    LACKS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("model", "weights", "trust", "max_size"), "it has random weights; use finetune"),
        **dict.fromkeys(("max_drop", "confidence"), "random weights are nothing to compare with"),
    }

    command: str = "compressor train"

    def completed(self) -> Self:
        if self.model.arch is None and self.model.model is None:
            raise UsageError("`arch` is missing: give torchvision:NAME, timm:NAME or FILE.py:build")
        return super().completed()


@dataclass(frozen=True)
class FinetuneJob(TrainJob):
    """Training a network of a file further."""

    LACKS: ClassVar[Mapping[str, str]] = {}

    training: TrainSettings = FINETUNE
    command: str = "compressor finetune"
    distilling: DistillSettings = field(default_factory=DistillSettings)


_EXIT: dict[str, Any] = {"text": "Only this exit of a model or package that has several.", "metavar": "N"}


@dataclass(frozen=True)
class InspectJob(ModelJob):
    """Which channels belong together; and, with data, what it costs to prune them."""

    model: ModelSettings
    keep: tuple[str, ...] = setting((), "Layers to leave unpruned.", "PATTERN", many=True)
    also: tuple[str, ...] = setting((), "Method of the model to trace besides forward.", "METHOD", many=True)
    sensitivity: bool = setting(False, "Predict from data what pruning each group costs the outputs.")
    data: str | None = setting(None, **DATA)
    loading: DataSettings = field(default_factory=DataSettings)

    def completed(self) -> Self:
        super().completed()
        if self.sensitivity != (self.data is not None):
            raise UsageError("`sensitivity` looks at images, and nothing else does: give both `sensitivity` and `data`")
        return self


@dataclass(frozen=True)
class EvaluateJob(ModelJob):
    """The accuracy of a model on a test set."""

    model: ModelSettings
    data: str = setting(MISSING, **DATA)
    loading: DataSettings = field(default_factory=DataSettings)
    device: str = setting(TrainSettings.device, "auto, cpu, cuda or cuda:NUMBER.", "DEVICE")
    split: Literal["test", "validation", "train"] = setting("test", "test, validation or train.", "SPLIT")
    exit: int | None = setting(None, **_EXIT)


@dataclass(frozen=True)
class ProfileJob(ModelJob):
    """The cost of a model."""

    model: ModelSettings
    latency: bool = setting(False, "Measure latency, which takes some seconds.")
    device: str = setting("cpu", "Where latency is measured.", "DEVICE")
    exit: int | None = setting(None, **_EXIT)


@dataclass(frozen=True)
class TuneJob(ModelJob):
    """A package made fast on this machine, or what another machine times a model's layers with."""

    model: ModelSettings
    kit: str | None = setting(
        None, "Of a model: write a folder that times its layers on another machine, for prune --table.", "FOLDER"
    )
    threads: int = setting(1, "Threads while timing.", "N", 1)
    latency: bool = setting(True, "Measure each exit before and after.")


@dataclass(frozen=True)
class ExportJob(ModelJob):
    """A model as a file for another runtime."""

    PANEL: ClassVar[str] = "Output"

    model: ModelSettings
    out: str = setting(MISSING, "The file (.onnx, .pt2) or the folder (a package) to write.", "PATH")
    to: Literal["onnx", "openvino", "litert", "executorch", "ncnn", "torch", "pt2"] = setting(
        "onnx", "The runtime; torch: a Python file with weights; pt2: torch's program.", "RUNTIME"
    )
    precision: Literal["fp32", "int8"] = setting("fp32", "int8: quantized, calibrated on training images.", "HOW")
    overwrite: bool = setting(False, "Replace what is there.")
    opset: int | None = setting(None, "ONNX opset, 15 to 23. [20]", "N")
    exit: int | None = setting(None, "Only this exit of a model that has several.", "N")
    exits: Literal["one", "separate"] = setting(
        "one", "one: a graph with branches; separate: also a flat graph for each exit, on the same weights.", "HOW"
    )
    latency: bool = setting(True, "Measure each exit of a package.")
    chip: Literal["x86", "x86-old", "arm", "npu"] = setting(
        "x86", "Target of int8: x86, x86-old (no VNNI), arm, npu.", "CHIP"
    )
    promise: PromiseSettings = field(default_factory=PromiseSettings)  # of int8, against the model as it is
    sign: str | None = setting(None, "Private ed25519 key (PEM) to sign a package with.", "KEY")
    data: str | None = setting(None, **DATA)  # whose validation images the file is compared on
    loading: DataSettings = field(default_factory=DataSettings)
