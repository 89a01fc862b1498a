"""What a person may choose about one-shot pruning, with every default; nothing heavy is imported, so that the command
line can read it for `--help`.
"""

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from compressor.errors import UsageError, did_you_mean
from compressor.settings import setting

if TYPE_CHECKING:
    from compressor.pruning.scores import Score


@dataclass(frozen=True)
class About:
    """A method as a person who has to choose one sees it."""

    summary: str
    score: str  # what a score counts, as it stands after the number in a reason
    needs_data: bool = False


ABOUT: dict[str, About] = {
    "obs": About("least error of what reads it, refitted (block optimal brain surgeon)", "error", needs_data=True),
    "l1": About("smallest sum of absolute weights", "of the layer's mean"),
    "l2": About("smallest Euclidean norm of the weights", "of the layer's mean"),
    "bn-scale": About("smallest batch norm scale (network slimming)", "mean |scale|"),
    "fpgm": About("closest to all other filters of its layer (geometric median)", "of the layer's mean distance"),
    "taylor": About(
        "least change of the loss, to first order",
        "of the layer's mean change",
        needs_data=True,
    ),
    "random": About("by chance: the baseline that any method has to beat", "drawn from 0 to 1"),
}

# Methods that are no one-shot choice: they work while the network trains.
TRAINED: dict[str, About] = {
    "adapnet": About("prune, merge and insert filters while the network trains", "", needs_data=True),
}

# Methods that choose whole blocks in one shot, not channels, or both.
BLOCKS: dict[str, About] = {
    "blocks": About("residual blocks left out, or one fitted convolution in their place", "", needs_data=True),
    "mixed": About("the best of blocks, channels by obs, and both", "", needs_data=True),
}
METHODS = ABOUT | BLOCKS | TRAINED
WITHOUT_DATA = tuple(name for name, about in METHODS.items() if not about.needs_data)


def is_own(method: str) -> bool:
    """Whether a method is a function of the user's: "FILE.py:score", or the name of one in memory."""
    return ":" in method


def score_of(method: str) -> "Score":
    """The function behind a method of the table; the function has its name. obs has none: it ranks by curves."""
    name = method.replace("-", "_")
    return cast("Score", getattr(importlib.import_module("compressor.pruning.scores"), name))


@dataclass(frozen=True)
class PruneSettings:
    """How a one-shot method chooses the channels that go."""

    PANEL: ClassVar[str] = "Pruning"

    method: str = setting(
        "auto", "Pruning criterion, see above, or FILE.py:score; auto: obs with data, else l1.", "METHOD"
    )
    ratio: float = setting(0.5, "Share of the channels to remove.", "SHARE", 0, 1)
    target_macs: float | None = setting(
        None, "Instead of a ratio, the MACs to keep: 0.5 for half, 2e8 for 200 million.", "MACS"
    )
    target_ms: float | None = setting(
        None, "Instead of a ratio, milliseconds for one image in onnxruntime on this machine.", "MS"
    )
    speedup: float | None = setting(
        None, "Instead of a ratio, how many times as fast, by the same measure: 2.", "TIMES", rare=True
    )
    threads: int = setting(1, "CPU threads that times are measured with.", "N", 1, rare=True)
    runtime: Literal["onnxruntime", "openvino"] = setting(
        "onnxruntime", "What a target of time is measured on.", "NAME", rare=True
    )
    table: str | None = setting(
        None, "Times of another machine, from its kit (compressor tune --kit).", "FILE", rare=True
    )
    target_mb: float | None = setting(None, "Instead of a ratio, megabytes of float32 weights.", "MB", rare=True)
    target_ram: float | None = setting(
        None, "Instead of a ratio, megabytes of float32 activations of one image that live at once.", "MB", rare=True
    )
    allocate: Literal["auto", "error", "uniform", "global"] = setting(
        "auto", "How pruning is shared out: least error for each MAC, the same share a layer, or lowest scores.", "HOW"
    )
    round_to: int | Literal["auto"] = setting(
        "auto", "Round pruned widths to a multiple of N; auto: the processor's vector width. [auto]", "N", 1
    )
    min_channels: int = setting(1, "Least number of channels to keep in every layer.", "N", 1)
    ratio_for: tuple[tuple[str, float], ...] = setting(
        (), "Ratio of some layers only, such as 'layer1.*=0.2'. Repeatable.", "LAYER=SHARE", many=True
    )
    keep: tuple[str, ...] = setting((), "Layers to leave unpruned, such as 'layer4.*'. Repeatable.", "LAYER", many=True)
    also: tuple[str, ...] = setting(
        (), "Method of the model to trace besides forward, such as embed. Repeatable.", "METHOD", rare=True, many=True
    )
    score_images: int = 512  # training images that methods which need labels look at
    reconstruct: bool = setting(
        True, "Least-squares reconstruction of layers that read pruned channels. [adapnet: preset short]"
    )
    seed: int = setting(0, "Random seed.", "N")


def resolved(settings: PruneSettings, *, has_inputs: bool) -> PruneSettings:
    """The settings without "auto", where images are at hand or not.

    Methods: obs with images, l1 without. Allocation: by the error for each multiply-add with images, uniform without.
    """
    method = settings.method if settings.method != "auto" else "obs" if has_inputs else "l1"
    allocate = settings.allocate if settings.allocate != "auto" else "error" if has_inputs else "uniform"
    return replace(settings, method=method, allocate=allocate)


def in_time(settings: Any) -> bool:
    """Whether there is a target of time, so that layers have to be timed."""
    return settings.target_ms is not None or settings.speedup is not None


def looks_at_inputs(settings: PruneSettings) -> bool:
    """Whether what was resolved needs images, without labels, to judge channels."""
    return settings.method == "obs" or settings.allocate == "error"


def check(settings: PruneSettings, *, has_data: bool) -> None:
    """Raise UsageError for a value that makes no sense for any model, or a method that needs the data there are not."""
    if settings.method in TRAINED:
        raise UsageError(
            f"{settings.method} works while a network trains, not in one shot: "
            f"compressor prune MODEL --method {settings.method} --data DATA"
        )
    settings = resolved(settings, has_inputs=has_data)
    own = is_own(settings.method)
    if settings.method not in METHODS and not own:
        hint = did_you_mean(settings.method, METHODS)
        raise UsageError(f"there is no method {settings.method!r}{hint}; the methods are {', '.join(METHODS)}")
    if not own and METHODS[settings.method].needs_data and not has_data:
        free = ", ".join(WITHOUT_DATA)
        raise UsageError(f"{settings.method} needs data: give some, or use a method that needs none ({free})")
    for name, ratio in (("ratio", settings.ratio), *((f"ratio for {p}", r) for p, r in settings.ratio_for)):
        if not 0 <= ratio < 1:
            raise UsageError(f"the {name} is {ratio:g}; give a share of the channels from 0 to below 1, such as 0.5")
    if settings.target_macs is not None and not settings.target_macs > 0:
        raise UsageError(f"the target is {settings.target_macs:g} MACs; give a share such as 0.5, or a number of MACs")
    if settings.speedup is not None and not settings.speedup > 1:
        raise UsageError(f"the speedup is {settings.speedup:g}; give more than 1, such as 2 for half of the time")
