"""What each verb is asked to do; nothing heavy is imported, so that the command line can read it for `--help`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from compressor.errors import UsageError
from compressor.exits.settings import CNSN, NSN, DetachSettings, falling
from compressor.primenet.settings import REPRESENTATION, PrimeNetSettings
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings, Preset, resolved
from compressor.pruning.settings import BLOCKS, TRAINED, WITHOUT_DATA, PruneSettings
from compressor.pruning.settings import check as check_pruning
from compressor.routing.settings import PAPER_TRAINING, TUNED_TRAINING, RouteSettings, paper
from compressor.routing.settings import check as check_routing
from compressor.runs.job import (
    DATA,
    EvaluateJob,
    ExportJob,
    FinetuneJob,
    InspectJob,
    ProfileJob,
    RunJob,
    TrainJob,
    TuneJob,
)
from compressor.runs.settings import FINETUNE, GoalSettings, PromiseSettings, SweepSettings, TimeSettings
from compressor.settings import Job, setting
from compressor.training.settings import DistillSettings, TrainSettings

# Settings that choose what goes.
_TARGETS = ("target_macs", "target_ms", "speedup", "target_mb", "target_ram")
_DECIDING = ("method", "ratio", *_TARGETS, "table", "allocate", "round_to", "min_channels", "ratio_for")

# The flags of prune that most people need.
_SHOWN = frozenset((
    "model", "arch", "input", "trust", "data", "task", "method", "ratio", "target_macs", "target_ms", "round_to",
    "keep", "plan", "preset", "max_epochs", "finetune_epochs", "epochs", "batch_size", "lr", "seed", "device",
    "distill", "out", "overwrite", "latency", "onnx",
))  # fmt: skip


def _with_optimizer(training: TrainSettings, given: Mapping[str, Any]) -> TrainSettings:
    """A paper's training, without the arguments of its optimizer where another one was chosen."""
    own = given.get("optimizer", training.optimizer) == training.optimizer
    return training if own else replace(training, optimizer_arg=())


@dataclass(frozen=True)
class PruneJob(RunJob):
    """One-shot pruning, and with data fine-tuning and accuracy."""

    RUN: ClassVar[str] = "prune.PruneRun"
    METHOD: ClassVar[str | None] = None  # the only one of which this is the job
    SHOWS: ClassVar[frozenset[str]] = _SHOWN

    data: str | None = setting(None, **DATA)  # type: ignore[assignment]
    training: TrainSettings = FINETUNE
    command: str = "compressor prune"
    choice: PruneSettings = field(default_factory=PruneSettings)
    distilling: DistillSettings = field(default_factory=DistillSettings)
    plan: str | None = setting(
        None, "Carry out a plan that --dry-run --out FOLDER wrote, edited or not.", "FILE", panel="Pruning"
    )

    @classmethod
    def takes(cls, given: Mapping[str, Any]) -> bool:
        """Methods that choose channels in one shot, or the only one."""
        method = given.get("method")
        return method not in TRAINED | BLOCKS if cls.METHOD is None else method == cls.METHOD

    def completed(self) -> Self:
        super().completed()
        target = next((name for name in _TARGETS if name in self.chosen), None)
        if target is not None and "ratio" in self.chosen:
            raise UsageError(
                f"`ratio` and `{target}` exclude each other: the ratio that meets a target is searched for"
            )
        deciding = [name for name in self.chosen if name in _DECIDING]
        if self.plan is not None and deciding:
            raise UsageError(f"`plan` and `{deciding[0]}` both decide what is pruned: leave one of them out")
        check_pruning(self.choice, has_data=self.data is not None)
        for name in ("epochs", "distill", "max_drop"):
            if self.data is None and name in self.chosen:
                raise UsageError(f"`{name}` looks at images, which needs `data`: give some, or leave it out")
        return self


@dataclass(frozen=True)
class BlocksJob(PruneJob):
    """One-shot pruning of whole blocks, which data choose."""

    RUN: ClassVar[str] = "prune_blocks.BlocksRun"
    METHOD: ClassVar[str | None] = "blocks"
    LACKS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("ratio", "ratio_for", "allocate", "round_to", "min_channels"),
            "it takes whole blocks, and no channels, until `target_macs`, `target_ms` or `speedup` is met",
        ),
        **dict.fromkeys(("target_mb", "target_ram"), "give `target_macs`, `target_ms` or `speedup`"),
        "table": "a table has times of layers, not of blocks",
        "plan": "it has no channels to list; the same command makes the same choice",
        "also": "only what forward runs is seen",
        "reconstruct": "what takes a block's place is fitted in any case",
    }


@dataclass(frozen=True)
class MixedJob(BlocksJob):
    """One-shot pruning of whole blocks half of the way, then of channels."""

    RUN: ClassVar[str] = "prune_blocks.MixedRun"
    METHOD: ClassVar[str | None] = "mixed"
    LACKS: ClassVar[Mapping[str, str]] = {
        **{name: why for name, why in BlocksJob.LACKS.items() if name not in ("round_to", "min_channels")},
        **dict.fromkeys(
            ("ratio", "ratio_for", "allocate"),
            "channels go by their errors until `target_macs`, `target_ms` or `speedup` is met",
        ),
    }


@dataclass(frozen=True)
class AdaptJob(RunJob):
    """AdapNet: pruning, merging and inserting filters while the network trains."""

    RUN: ClassVar[str] = "adapnet.AdaptRun"
    SHOWS: ClassVar[frozenset[str]] = _SHOWN
    LACKS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("ratio", "allocate", "min_channels", "ratio_for", "target_mb", "target_ram"),
            "it decides itself how much goes; `target_macs`, `target_params` or `target_ms` end it sooner",
        ),
        **dict.fromkeys(("schedule", "warmup_epochs"), "it halves its rate every `lr_halve_every` epochs"),
        "epochs": "give `startup_epochs`, `max_epochs` and `finetune_epochs`",
    }

    # `training`: what AdapNet's own settings do not say
    command: str = "compressor prune"
    goals: GoalSettings = field(default_factory=GoalSettings)
    preset: Preset = setting("auto", "auto, paper, quick or short, see above.", "NAME", panel="AdapNet")
    adapnet: AdapNetSettings = field(default_factory=AdapNetSettings)
    distilling: DistillSettings = field(default_factory=DistillSettings)
    method: str = setting("adapnet", "Pruning criterion.", "METHOD", panel="Pruning")

    @classmethod
    def takes(cls, given: Mapping[str, Any]) -> bool:
        """The method that trains."""
        return given.get("method") == "adapnet"

    def completed(self) -> Self:
        super().completed()
        return replace(self, preset=resolved(self.preset, trained=self.model.model is not None))

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the preset sets."""
        if given.get("data") is None:
            raise UsageError(
                "adapnet decides while the network trains and needs `data`, such as digits; without data prune in one "
                f"shot by {', '.join(WITHOUT_DATA)}"
            )
        chosen = resolved(given.get("preset", "auto"), trained=given.get("model") is not None)
        return {"adapnet": PRESETS.get(chosen, PRESETS["paper"]), "training": FINETUNE}  # others are refused later


@dataclass(frozen=True)
class ReplaceJob(RunJob):
    """Replacing the first layers by PrimeNet's block, and training both."""

    RUN: ClassVar[str] = "replace.ReplaceRun"

    training: TrainSettings = REPRESENTATION
    command: str = "compressor replace"
    until: str | None = setting(
        None, "Last module of the replaced stage. [the earliest that pays]", "LAYER", panel="PrimeNet"
    )
    primenet: PrimeNetSettings = field(default_factory=PrimeNetSettings)

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The paper's training."""
        return {"training": _with_optimizer(REPRESENTATION, given)}


@dataclass(frozen=True)
class DetachJob(RunJob):
    """Cutting sub-models out of a network, and training all of them together."""

    RUN: ClassVar[str] = "detach.DetachRun"

    data: str | None = setting(None, **DATA)  # type: ignore[assignment]  # --list and --dry-run do without
    training: TrainSettings = CNSN
    command: str = "compressor detach"
    choice: DetachSettings = field(default_factory=DetachSettings)

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The training of the method's paper."""
        return {"training": NSN if given.get("method") == "nsn" else CNSN}

    def completed(self) -> Self:
        """The job with the epochs at which the learning rate falls, unless they were chosen."""
        return replace(super().completed(), training=falling(self.choice.method, self.training))


@dataclass(frozen=True)
class RouteJob(RunJob):
    """Early exits in a network, and a router that chooses one for each image."""

    RUN: ClassVar[str] = "route.RouteRun"

    data: str | None = setting(None, **DATA)  # type: ignore[assignment]  # --list and --dry-run do without
    training: TrainSettings = TUNED_TRAINING
    command: str = "compressor route"
    choice: RouteSettings = field(default_factory=RouteSettings)

    @classmethod
    def bases(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The paper's letter in the paper's mode."""
        letter = {"choice": paper(given), "training": _with_optimizer(PAPER_TRAINING, given)}
        return letter if given.get("mode") == "paper" else {}

    def completed(self) -> Self:
        super().completed()
        check_routing(self.choice)
        targets = [name for name in ("threshold", "target_macs", "target_ms") if getattr(self.choice, name) is not None]
        if targets and self.promise.max_drop is not None:
            raise UsageError(f"give `{targets[0]}` or `max_drop`, not both: each of them chooses the threshold")
        return self


@dataclass(frozen=True)
class SweepJob(RunJob):
    """Runs over a grid, each with the same budget, and their comparison."""

    training: TrainSettings = FINETUNE
    command: str = "compressor sweep"
    grid: SweepSettings = field(default_factory=SweepSettings)
    distilling: DistillSettings = field(default_factory=DistillSettings)  # of every run, the control included

    def completed(self) -> Self:
        self.check_trained("a sweep")
        if self.grid.target_ms and "targets" in self.chosen:
            raise UsageError("`targets` and `target_ms` both say how small: leave one of them out")
        return super().completed()


# What is searched for where nobody says.
ONE_POINT, TWENTY_MINUTES = PromiseSettings(0.01), TimeSettings(20 * 60.0)


@dataclass(frozen=True)
class ShrinkJob(RunJob):
    """The cheapest network that keeps a promise, found in a time."""

    LACKS: ClassVar[Mapping[str, str]] = {
        "epochs": "they follow from `for_`",
        "precision": "it tries INT8 of what passes by itself",
    }

    training: TrainSettings = FINETUNE
    promise: PromiseSettings = ONE_POINT
    time: TimeSettings = TWENTY_MINUTES
    command: str = "compressor shrink"
    target_ms: float | None = setting(
        None, "The result takes at most so many milliseconds for one image in ONNX Runtime.", "MS", 0, panel="Pruning"
    )
    distilling: DistillSettings = field(default_factory=DistillSettings)

    def completed(self) -> Self:
        self.check_trained("shrink")
        if self.promise.max_drop is None or self.time.for_ is None:
            raise UsageError("shrink needs `max_drop` and `for_`: leave them out for 0.01 and 20m")
        return super().completed()


# The verbs, as `compressor --help` lists them, and what each may be asked to do; those without a job have no settings.
VERBS: dict[str, tuple[type[Job], ...]] = {
    "profile": (ProfileJob,),
    "inspect": (InspectJob,),
    "shrink": (ShrinkJob,),
    "train": (TrainJob,),
    "evaluate": (EvaluateJob,),
    "prune": (PruneJob, BlocksJob, MixedJob, AdaptJob),
    "detach": (DetachJob,),
    "replace": (ReplaceJob,),
    "route": (RouteJob,),
    "finetune": (FinetuneJob,),
    "resume": (),
    "sweep": (SweepJob,),
    "compare": (),
    "export": (ExportJob,),
    "tune": (TuneJob,),
    "verify": (),
    "new-task": (),
    "doctor": (),
    "demo": (),
}


def job_of_method(method: str) -> Any:
    """The class of the jobs of `prune` with a method."""
    return next(kind for kind in VERBS["prune"] if kind.takes({"method": method}))
