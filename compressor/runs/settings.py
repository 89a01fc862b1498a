"""What a person may choose about a run as a whole, with every default; nothing heavy is imported."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from compressor.errors import UsageError
from compressor.files.limits import LARGEST_GIB
from compressor.pruning.settings import PruneSettings
from compressor.report.measurements import CONFIDENCE
from compressor.settings import same, setting
from compressor.training.settings import TrainSettings


def shape(text: str) -> tuple[int, ...]:
    """`3x224x224` -> (3, 224, 224); a number alone is the side of a colour image.

    Raises ValueError.
    """
    found = sizes(text)
    if len(found) == 2 and found[0] == found[1]:
        raise ValueError(text)
    return (3, *found, *found) if len(found) == 1 else found


def sizes(text: str) -> tuple[int, ...]:
    """`2x3` -> (2, 3). Raises ValueError."""
    parts = text.lower().replace("×", "x").replace(",", "x").split("x")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(text)
    return tuple(int(part) for part in parts)


def duration(text: str) -> float:
    """`90s`, `20m`, `2h` or `1h30m` -> seconds; a number alone is minutes.

    Raises ValueError.
    """
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    if parts is None or not any(parts.groups()):
        return 60 * float(text)
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 3600.0 * hours + 60 * minutes + seconds


@dataclass(frozen=True)
class Input:
    """One input of a network, for one example."""

    name: str | None  # of the argument; None: by its place
    kind: str | None  # such as "int64"; None: float32
    sizes: tuple[int, ...]  # without the batch

    @classmethod
    def read(cls, text: str) -> "Input":
        """`3x224x224`, `mask=1x64x64`, `ids=int64:16`; a type alone, `step=int64`, is one number an example.

        Raises ValueError.
        """
        name, named, rest = text.rpartition("=")
        kind, typed, shown = rest.rpartition(":")
        if named and not name.isidentifier():
            raise ValueError(text)
        if not typed and rest.isidentifier():
            kind, shown = rest, ""
        if kind and kind not in INPUT_KINDS:
            raise ValueError(text)
        read = () if not shown and kind else sizes(shown) if named or kind else shape(shown)
        return cls(name or None, kind or None, read)


INPUT_KINDS = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


def inputs(texts: Iterable[str]) -> tuple[Input, ...]:
    """What is said of each input of a network.

    Raises:
        UsageError: a text says nothing of an input, or some inputs have names of their own and others do not.
    """
    found = []
    for text in texts:
        try:
            found.append(Input.read(text))
        except ValueError as error:
            raise UsageError(
                f"`input` {text!r} is not of the form CxHxW, such as 3x224x224, or NAME=TYPE:SIZES, such as "
                "ids=int64:16"
            ) from error
    names = [each.name for each in found if each.name is not None]
    if names and len(set(names)) < len(found):
        raise UsageError("`input` is given several times: name each of them, or none")
    return tuple(found)


# Weights that are good already are trained on gently.
FINETUNE = replace(TrainSettings(), lr=0.01)


@dataclass(frozen=True)
class ModelSettings:
    """Which network, and how it is opened."""

    PANEL: ClassVar[str] = "Model"

    model: str | None = setting(
        None, "Model file. Left out, --arch is taken with random weights.", "MODEL", argument=True
    )
    arch: str | None = setting(None, "How the network is built: torchvision:NAME, timm:NAME or FILE.py:build.", "ARCH")
    arch_arg: tuple[tuple[str, Any], ...] = setting(
        (), "Argument of the architecture, such as num_classes=10. Repeatable.", "KEY=VALUE", many=True
    )
    input: tuple[int, ...] | tuple[str, ...] | None = setting(
        None,
        "Shape of the images, such as 3x224x224, where the model does not say. Of several inputs each: mask=1x64x64.",
        "CxHxW",
        many=True,
        read=str,
    )
    weights: str | None = setting(None, "Which weights of a file with several, such as model_ema.", "KEY", rare=True)
    trust: bool = setting(
        False, "Let a pickled model or a program run code while it is opened. Only for files of your own."
    )
    max_size: float = setting(LARGEST_GIB, "Largest model file, also unpacked, in GiB.", "GIB", 0, rare=True)

    def __post_init__(self) -> None:
        """A single shape is held as its sizes. Raises UsageError for inputs that cannot be read."""
        found = self.inputs
        if len(found) == 1 and found[0].name is None and found[0].kind is None:
            object.__setattr__(self, "input", found[0].sizes)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The sizes of the only input, where they are given."""
        return None if self.input is None or self.inputs else tuple(int(size) for size in self.input)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Each of several inputs, or one that has a name or another type than float32; else none."""
        return inputs(text for text in self.input or () if isinstance(text, str))


@dataclass(frozen=True)
class OutputSettings:
    """Where a run leaves its files, and what it makes besides the model."""

    PANEL: ClassVar[str] = "Output"

    out: str | None = setting(None, "Folder for the results.", "FOLDER")
    overwrite: bool = setting(False, "Replace the run that is in the folder.")
    latency: bool = setting(True, "Measure latency with torch and ONNX Runtime.")
    onnx: bool = setting(True, "Export the result to ONNX and check it.")
    precision: Literal["fp32", "int8"] = setting(
        "fp32", "int8: also a package in INT8, calibrated on training images, in the folder int8.", "HOW", rare=True
    )


@dataclass(frozen=True)
class PromiseSettings:
    """What the result must keep on images that nobody has seen, against the network as it came."""

    PANEL: ClassVar[str] = "Promise"

    max_drop: float | None = setting(
        None, "A promise: on fresh images top-1 falls by at most this fraction.", "X", 0, 0.99
    )
    confidence: float = setting(CONFIDENCE, "Of that promise.", "SHARE", 0, 0.9999, rare=True)


@dataclass(frozen=True)
class TimeSettings:
    """How long a run may take."""

    PANEL: ClassVar[str] = "Training"

    for_: float | None = setting(
        None, "How long it may take, such as 20m: as many epochs as that has time for.", "TIME", 0, read=duration
    )


@dataclass(frozen=True)
class GoalSettings:
    """What AdapNet may be asked beyond the paper; all of it is ours."""

    PANEL: ClassVar[str] = "AdapNet"

    target_macs: float | None = same(PruneSettings, "target_macs")
    target_ms: float | None = same(PruneSettings, "target_ms")
    speedup: float | None = same(PruneSettings, "speedup")
    threads: int = same(PruneSettings, "threads")
    runtime: Literal["onnxruntime", "openvino"] = same(PruneSettings, "runtime")
    table: str | None = same(PruneSettings, "table")
    target_params: float | None = setting(None, "Parameters to keep, like --target-macs; adapnet only.", "PARAMS")
    undo_drop: float | None = setting(
        None, "Undo a pruning step that costs more validation top-1 than this, such as 0.02.", "SHARE", 0, 1, rare=True
    )
    round_to: int | Literal["auto"] = same(PruneSettings, "round_to")
    keep: tuple[str, ...] = same(PruneSettings, "keep")
    also: tuple[str, ...] = same(PruneSettings, "also")
    fill: bool = setting(False, "Use epochs left over by pruning for fine-tuning.", rare=True)


@dataclass(frozen=True)
class SweepSettings:
    """Which runs a sweep is made of: every method at every target."""

    PANEL: ClassVar[str] = "Grid"

    methods: tuple[str, ...] = setting(
        ("obs", "taylor", "adapnet"),
        "Pruning methods, see `compressor prune --help`. [obs,taylor,adapnet]",
        "NAME,NAME,...",
    )
    targets: tuple[float, ...] = setting((0.7, 0.5, 0.3), "Shares of the MACs to keep. [0.7,0.5,0.3]", "SHARE,...")
    target_ms: tuple[float, ...] = setting(
        (), "Instead of shares, milliseconds for one image in onnxruntime on this machine, such as 5,3.", "MS,..."
    )
    control: bool = setting(True, "Also fine-tune the unpruned model with the same budget, to compare.")
    lsep: int | None = setting(None, "Optimizer steps between pruning steps.", "STEPS", 1)
    reconstruct: bool = setting(True, "Least-squares reconstruction of layers that read pruned channels.")
