"""What each verb is asked to do; nothing heavy is imported, so that the command line can read it for `--help`."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, is_dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from compressor.errors import FileError, UsageError
from compressor.exits.settings import CNSN, NSN, DetachSettings, falling
from compressor.primenet.settings import REPRESENTATION, PrimeNetSettings
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.catalogue import ABOUT
from compressor.pruning.settings import PruneSettings
from compressor.pruning.settings import check as check_pruning
from compressor.routing.settings import PAPER_TRAINING, TUNED_TRAINING, RouteSettings, paper
from compressor.routing.settings import check as check_routing
from compressor.runs.settings import FINETUNE, GoalSettings, ModelSettings, OutputSettings, SweepSettings
from compressor.settings import Job, fits, plain, read, recorded_of, setting
from compressor.training.settings import SPECS, DataSettings, DistillSettings, TrainSettings

# What a data set is called, for the verbs that cannot do without one and for those that can.
_DATA: dict[str, Any] = {
    "text": f"{', '.join(SPECS[:-1])} or {SPECS[-1]}.",
    "metavar": "DATA",
    "panel": "Data",
}
_EXIT: dict[str, Any] = {"text": "Only this exit of a model or package that has several.", "metavar": "N"}


# Settings that choose what goes.
_TARGETS = ("target_macs", "target_ms", "speedup", "target_mb")
_DECIDING = ("method", "ratio", *_TARGETS, "table", "allocate", "round_to", "min_channels", "ratio_for")


# The flags of prune that most people need.
_SHOWN = frozenset((
    "model", "arch", "input", "trust", "data", "method", "ratio", "target_macs", "target_ms", "round_to", "keep",
    "plan", "preset", "max_epochs", "finetune_epochs", "max_drop", "epochs", "batch_size", "lr", "seed", "device",
    "distill", "out", "overwrite", "latency", "onnx",
))  # fmt: skip


def _with_optimizer(training: TrainSettings, given: Mapping[str, Any]) -> TrainSettings:
    """A paper's training, without the arguments of its optimizer where another one was chosen."""
    return (
        training
        if given.get("optimizer", training.optimizer) == training.optimizer
        else replace(training, optimizer_arg=())
    )


class ModelJob(Job):
    """A job on a network of a file, or of an architecture with random weights."""

    model: ModelSettings

    def completed(self) -> Self:
        """The job itself; raises UsageError where there is neither file nor architecture."""
        if self.model.model is None and self.model.arch is None:
            raise UsageError("no model: give a file, or `arch` for an architecture with random weights")
        return self


@dataclass(frozen=True)
class InspectJob(ModelJob):
    """Which channels belong together; and, with data, what it costs to prune them."""

    model: ModelSettings
    keep: tuple[str, ...] = setting((), "Layers to keep as they are, as prune does.", "PATTERN", many=True)
    also: tuple[str, ...] = setting((), "A method of the model that is followed too.", "METHOD", many=True)
    sensitivity: bool = setting(False, "Predict from data what pruning each group costs the outputs.")
    data: str | None = setting(None, **_DATA)
    loading: DataSettings = field(default_factory=DataSettings)

    def completed(self) -> Self:
        """The job itself."""
        super().completed()
        if self.sensitivity != (self.data is not None):
            raise UsageError("`sensitivity` looks at images, and nothing else does: give both `sensitivity` and `data`")
        return self


@dataclass(frozen=True)
class PruneJob(ModelJob):
    """One-shot pruning, and with data fine-tuning and accuracy."""

    SHOWS: ClassVar[frozenset[str]] = _SHOWN

    model: ModelSettings
    output: OutputSettings = field(default_factory=OutputSettings)
    choice: PruneSettings = field(default_factory=PruneSettings)
    data: str | None = setting(None, **_DATA)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = FINETUNE
    distilling: DistillSettings = field(default_factory=DistillSettings)
    plan: str | None = setting(
        None, "Carry out a plan that --dry-run left with --out, edited or not.", "FILE", panel="Pruning"
    )
    command: str = "compressor prune"  # as it was typed
    chosen: tuple[str, ...] = ()  # which settings a person chose

    @classmethod
    def takes(cls, given: Mapping[str, Any]) -> bool:
        """All methods but AdapNet."""
        return given.get("method") != "adapnet"

    def completed(self) -> Self:
        """The job itself."""
        super().completed()
        target = next((name for name in _TARGETS if name in self.chosen), None)
        if target is not None and "ratio" in self.chosen:
            raise UsageError(
                f"`ratio` and `{target}` exclude each other: the ratio that meets a target is searched for"
            )
        deciding = [name for name in self.chosen if name in _DECIDING]
        if self.plan is not None and deciding:
            raise UsageError(f"`plan` says what goes, `{deciding[0]}` would decide it anew: leave one of them out")
        check_pruning(self.choice, has_data=self.data is not None)
        for name in ("epochs", "distill"):
            if self.data is None and name in self.chosen:
                raise UsageError(f"`{name}` trains the pruned model, which needs `data`: give some, or leave it out")
        return self


@dataclass(frozen=True)
class AdaptJob(ModelJob):
    """AdapNet: pruning, merging and inserting filters while the network trains."""

    SHOWS: ClassVar[frozenset[str]] = _SHOWN

    LACKS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("ratio", "allocate", "min_channels", "ratio_for", "target_ms", "speedup", "target_mb", "threads", "table"),
            "it decides itself how much goes; `target_macs` or `target_params` end it sooner",
        ),
        **dict.fromkeys(
            ("schedule", "milestones", "gamma", "warmup_epochs"),
            "it halves its rate every `lr_halve_every` epochs",
        ),
        "epochs": "give `startup_epochs`, `max_epochs` and `finetune_epochs`",
        "compile": "every change of structure would compile again",
        "momentum": "it has the paper's, 0.8",
    }

    model: ModelSettings
    data: str = setting(MISSING, **_DATA)
    output: OutputSettings = field(default_factory=OutputSettings)
    goals: GoalSettings = field(default_factory=GoalSettings)
    keep: tuple[str, ...] = setting((), "Layers that stay as they are.", "LAYER", many=True, panel="Pruning")
    also: tuple[str, ...] = setting(
        (), "A method of the model that is followed too.", "METHOD", rare=True, many=True, panel="Pruning"
    )
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = field(default_factory=TrainSettings)  # what AdapNet's own settings do not say
    preset: Literal["paper", "quick", "short"] = setting(
        "paper", "paper, quick or short, see above.", "NAME", panel="AdapNet"
    )
    adapnet: AdapNetSettings = PRESETS["paper"]
    distilling: DistillSettings = field(default_factory=DistillSettings)
    method: str = setting("adapnet", "How channels are chosen.", "METHOD", panel="Pruning")
    command: str = "compressor prune"
    chosen: tuple[str, ...] = ()

    @classmethod
    def takes(cls, given: Mapping[str, Any]) -> bool:
        """The method that trains."""
        return given.get("method") == "adapnet"

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the preset sets."""
        if given.get("data") is None:
            free = ", ".join(name for name, about in ABOUT.items() if not about.needs_data)
            raise UsageError(
                "adapnet decides while the network trains and needs `data`, such as digits; without data prune in one "
                f"shot by {free}"
            )
        return {"adapnet": PRESETS[given.get("preset", "paper")], "training": FINETUNE}


@dataclass(frozen=True)
class TrainJob(ModelJob):
    """Training, from random weights."""

    LACKS: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("model", "weights", "trust", "max_size"), "it has random weights; use finetune"
    )

    model: ModelSettings
    data: str = setting(MISSING, **_DATA)
    output: OutputSettings = field(default_factory=OutputSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    command: str = "compressor train"
    chosen: tuple[str, ...] = ()  # which settings a person chose; a network with its own training sets the others

    def completed(self) -> Self:
        """The job itself."""
        if self.model.arch is None and self.model.model is None:
            raise UsageError("`arch` is missing: give torchvision:NAME, timm:NAME or FILE.py:build")
        return self


@dataclass(frozen=True)
class FinetuneJob(TrainJob):
    """Training a network of a file further."""

    LACKS: ClassVar[Mapping[str, str]] = {}

    training: TrainSettings = FINETUNE
    distilling: DistillSettings = field(default_factory=DistillSettings)
    command: str = "compressor finetune"


@dataclass(frozen=True)
class ReplaceJob(ModelJob):
    """Replacing the first layers by PrimeNet's block, and training both."""

    model: ModelSettings
    data: str = setting(MISSING, **_DATA)
    until: str | None = setting(None, "Where the stage ends. [the earliest that pays]", "LAYER", panel="PrimeNet")
    output: OutputSettings = field(default_factory=OutputSettings)
    primenet: PrimeNetSettings = field(default_factory=PrimeNetSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = REPRESENTATION
    command: str = "compressor replace"
    chosen: tuple[str, ...] = ()

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The paper's training."""
        return {"training": _with_optimizer(REPRESENTATION, given)}

    def completed(self) -> Self:
        """The job itself."""
        super().completed()
        if min(self.training.batch_size, self.primenet.retrain_batch_size) < 2:
            raise UsageError("batches of one image: batch norm in the block needs more, give 2 or larger")
        return self


@dataclass(frozen=True)
class DetachJob(ModelJob):
    """Cutting sub-models out of a network, and training all of them together."""

    model: ModelSettings
    data: str | None = setting(None, **_DATA)
    output: OutputSettings = field(default_factory=OutputSettings)
    choice: DetachSettings = field(default_factory=DetachSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = CNSN
    command: str = "compressor detach"
    chosen: tuple[str, ...] = ()

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The training of the method's paper."""
        return {"training": NSN if given.get("method") == "nsn" else CNSN}

    def completed(self) -> Self:
        """The job with the epochs at which the learning rate falls, where nobody chose them."""
        return replace(super().completed(), training=falling(self.choice.method, self.training))


@dataclass(frozen=True)
class RouteJob(ModelJob):
    """Ways out of a network, and a router that chooses one for each image."""

    model: ModelSettings
    data: str | None = setting(None, **_DATA)
    output: OutputSettings = field(default_factory=OutputSettings)
    choice: RouteSettings = field(default_factory=RouteSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = TUNED_TRAINING
    command: str = "compressor route"
    chosen: tuple[str, ...] = ()

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The paper's letter in the paper's mode."""
        if given.get("mode") != "paper":
            return {}
        return {"choice": paper(given), "training": _with_optimizer(PAPER_TRAINING, given)}

    def completed(self) -> Self:
        """The job itself."""
        super().completed()
        check_routing(self.choice)
        return self


@dataclass(frozen=True)
class SweepJob(Job):
    """Runs over a grid, each with the same budget, and their comparison."""

    model: ModelSettings
    data: str = setting(MISSING, **_DATA)
    output: OutputSettings = field(default_factory=OutputSettings)
    grid: SweepSettings = field(default_factory=SweepSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = FINETUNE
    distilling: DistillSettings = field(default_factory=DistillSettings)  # of every run, the control included
    command: str = "compressor sweep"
    chosen: tuple[str, ...] = ()  # which settings a person chose: AdapNet has its own for the others


@dataclass(frozen=True)
class EvaluateJob(ModelJob):
    """The accuracy of a model on a test set."""

    model: ModelSettings
    data: str = setting(MISSING, **_DATA)
    loading: DataSettings = field(default_factory=DataSettings)
    device: str = setting(TrainSettings.device, "auto, cpu, cuda or cuda:NUMBER.", "DEVICE")
    split: Literal["test", "validation", "train"] = setting("test", "test, validation or train.", "SPLIT")
    exit: int | None = setting(None, **_EXIT)


@dataclass(frozen=True)
class ProfileJob(ModelJob):
    """The cost of a model."""

    model: ModelSettings
    latency: bool = setting(False, "Measure milliseconds, which takes some seconds.")
    device: str = setting("cpu", "Where latency is measured.", "DEVICE")
    exit: int | None = setting(None, **_EXIT)


@dataclass(frozen=True)
class TuneJob(ModelJob):
    """A package made fast on this machine, or what another machine times a model's layers with."""

    model: ModelSettings
    kit: str | None = setting(
        None, "Of a model: write a folder that times its layers on another machine, for prune --table.", "FOLDER"
    )
    threads: int = setting(1, "Of an operator, while it is timed.", "N", 1)
    latency: bool = setting(True, "Measure each exit before and after.")


@dataclass(frozen=True)
class ExportJob(ModelJob):
    """A model as a file for another runtime."""

    PANEL: ClassVar[str] = "Output"

    model: ModelSettings
    out: str = setting(MISSING, "The file (.onnx, .pt2) or the folder (a package) to write.", "PATH")
    to: Literal["onnx", "pt2", "int8"] = setting("onnx", "onnx; int8: quantized onnx; pt2: torch's program.", "KIND")
    overwrite: bool = setting(False, "Replace what is there.")
    opset: int | None = setting(None, "Version of ONNX's operators, 15 to 23. [20]", "N")
    exit: int | None = setting(None, "Only this exit of a model that has several.", "N")
    exits: Literal["one", "separate"] = setting(
        "one", "one: a graph with branches; separate: also a flat graph for each exit, on the same weights.", "HOW"
    )
    latency: bool = setting(True, "Measure each exit of a package.")
    chip: Literal["x86", "x86-old", "arm", "npu"] = setting(
        "x86", "That int8 is for: x86, x86-old (no VNNI), arm, npu.", "CHIP"
    )
    calibration_images: int = setting(128, "Training images that int8 is fitted on.", "N", 8)
    max_drop: float | None = setting(None, "Of top-1 that int8 may cost: 0.01.", "SHARE", 0, 1)
    data: str | None = setting(None, **_DATA)  # whose validation images the file is compared on
    loading: DataSettings = field(default_factory=DataSettings)


LongJob = PruneJob | AdaptJob | TrainJob | ReplaceJob | DetachJob | RouteJob | SweepJob  # what can be resumed
AnyJob = LongJob | EvaluateJob | ProfileJob | ExportJob | InspectJob | TuneJob

# What each verb may be asked to do.
VERBS: dict[str, tuple[type[Job], ...]] = {
    "train": (TrainJob,),
    "finetune": (FinetuneJob,),
    "prune": (PruneJob, AdaptJob),
    "detach": (DetachJob,),
    "route": (RouteJob,),
    "replace": (ReplaceJob,),
    "sweep": (SweepJob,),
    "evaluate": (EvaluateJob,),
    "profile": (ProfileJob,),
    "inspect": (InspectJob,),
    "export": (ExportJob,),
    "tune": (TuneJob,),
}


def job_of(settings: Mapping[str, Any]) -> LongJob:
    """The job that `flat` wrote down when a run began; the run's folder may come from anyone.

    Raises:
        FileError: a setting is missing or of another kind, or the command is none that trains.
    """
    command = str(settings.get("command"))
    kinds = VERBS.get(command, ())
    if not kinds or not issubclass(kinds[0], get_args(LongJob)):
        raise FileError(f"a run of `compressor {command[:80]}` cannot be resumed: start it again")
    kind = next(kind for kind in kinds if kind.takes(settings))
    known = recorded_of(kind)
    given = {name: settings[name] for name in known if name in settings}
    for name, one in known.items():
        if name not in given and one.default is MISSING:
            raise FileError(f"settings.json lacks {name!r}: it was written by another version; start the run again")
    chosen, typed = settings.get("chosen", ()), str(settings.get("typed", f"compressor {command}"))
    try:
        if not fits(plain(chosen), tuple[str, ...]):
            raise UsageError(f"chosen is {chosen!r}")
        inside = {"command": typed}
        made: Any = read([kind], given, verb="compressor", chosen=chosen, inside=inside, recorded=True)
    except UsageError as error:
        raise FileError(f"settings.json is damaged: {str(error)[:400]}; start the run again") from error
    job: LongJob = made
    return job


def flat(job: AnyJob) -> dict[str, Any]:
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
