"""What a model costs, how well it does, and what is promised of it on fresh images, as plain data and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from compressor.files.plain import plain
from compressor.report import units

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one module costs itself, without the modules inside it."""

    name: str  # dotted; "(model)" for what the outermost forward does itself
    kind: str  # class of the module, or operator of an .onnx file
    input_shapes: Shapes  # of the first call, for one image; empty where the module never ran
    output_shapes: Shapes
    macs: int  # multiply-adds for one image, over all calls
    params: int  # its own; a tensor shared by several modules counts for the first
    ms: float | None = None  # of one image in ONNX Runtime, where latency was measured


@dataclass(frozen=True)
class Profile:
    """What a model costs for one image; what is None or not whole has its reason in `reasons`."""

    macs: int  # multiply-adds of convolutions and matrix products, biases not counted
    macs_thop: int | None
    params: int  # shared ones once
    layers: tuple[LayerCost, ...] = ()
    uncounted: dict[str, int] = field(default_factory=dict)  # operators without a rule -> calls; they count as zero
    activation_bytes: int | None = None  # peak, without weights
    latency_ms: dict[str, Any] | None = None
    file_bytes: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `compressor profile --json` prints it."""
        return asdict(self)


TOP1 = "top1"  # fraction in 0..1 of the images whose largest score is their class's
_LOST = 0.01  # of top-1, or of the size of any other figure: a smaller change is about the same


@dataclass(frozen=True)
class Figure:
    """What a network is measured by: top-1, or what a user's task calls its main figure."""

    name: str = TOP1
    higher: bool = True  # is better

    @property
    def label(self) -> str:
        """As a table says it."""
        return "top-1" if self.name == TOP1 else self.name

    @property
    def axis(self) -> tuple[str, float]:
        """As a plot says it, and the factor of its values."""
        return ("top-1, %", 100.0) if self.name == TOP1 else (self.name, 1.0)

    def write(self, value: float, digits: int = 2) -> str:
        """A value: "93.20 %", 0.8123."""
        return f"{100 * value:.{digits}f} %" if self.name == TOP1 else f"{value:.4g}"

    def change(self, before: float, after: float) -> str:
        """From one value to another: "-0.80 pp", "+0.0123"."""
        return units.points(before, after) if self.name == TOP1 else f"{after - before:+.3g}"

    def drop(self, before: float, after: float) -> float:
        """How much worse the second is; below zero where it is better."""
        return before - after if self.higher else after - before

    def gain(self, before: float, after: float) -> float:
        """How much better the second is, where 1 is what one would notice."""
        scale = _LOST if self.name == TOP1 else _LOST * abs(before) or _LOST
        return -self.drop(before, after) / scale


TOP = Figure()


def validated(row: Mapping[str, Any]) -> tuple[Figure, float | None] | None:
    """The main figure in an epoch's row, of the validation set; None where it was not looked for."""
    names = [key.removeprefix("validation_") for key in row if key.startswith("validation_")]
    name = next((name for name in names if name not in ("loss", "local_losses")), None)
    return None if name is None else (Figure(name), row[f"validation_{name}"])


CONFIDENCE = 0.95  # of a promise, unless another is asked for


@dataclass(frozen=True)
class Certificate:
    """What is promised of a network against the one that it was made of, and what its images showed."""

    drop: float  # at most, of the right share of the images: what they allow to be promised of this candidate alone
    confidence: float
    images: int  # which chose nothing; of a user's task examples, or batches
    observed: float  # the drop on them
    kept: bool  # whether what was asked for is promised
    asked: float
    would_do: int | None  # images that would be enough if as many of them were lost; None where kept, or none would
    worst_class: str = ""
    worst_drop: float = 0.0
    worst_images: int = 0
    agreement: float | None = None  # share of the images both have right, or both wrong; None: they are not counted
    otherwise: str = ""  # what is done where nothing is promised
    subject: str = ""  # of which network of several it speaks, to begin the sentence with
    exit: int | None = None  # the exit that it is of, where one is asked for by its number
    figure: str = TOP1  # that may fall; where no single images are counted, the drop is in its units
    unit: str = "images"
    differed: int | None = None  # images that the deepest exit gives another class; None where there are no exits

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the sentence."""
        return {**asdict(self), "words": self.words()}

    @property
    def kind(self) -> str:
        """How sure the bound is: exact for a share of right images, and for a user's own figure an estimate."""
        return "bootstrap estimate" if self.agreement is None else "exact"

    def words(self) -> str:
        """The sentence for a report."""
        shown = of = ""
        scale, digits, unit = 1, ".4g", f"of {self.figure}"
        if self.agreement is not None:
            scale, digits, unit, of = 100, ".2f", "points", f" of {'top-1' if self.figure == TOP1 else self.figure}"
            shown = f"both networks are right or wrong together on {self.agreement:.1%}."
            if self.worst_images:
                lost = f"{100 * self.worst_drop:.1f} points of its {self.worst_images:,} {self.unit}"
                shown = f"the class that loses most, {self.worst_class}, loses {lost}; {shown}"
            shown = f" {shown[0].upper()}{shown[1:]}"
        asked = f"at most {scale * self.asked:g} {unit}{of}"
        observed, drop = (format(scale * each, digits) for each in (self.observed, self.drop))
        if self.kept:
            begin = f"{self.subject} loses" if self.subject else "Loses"
            return (
                f"{begin} {asked} on {self.unit} like these, with {self.confidence:.0%} confidence "
                f"(n = {self.images:,}, {self.kind}; {observed} on them).{shown}"
            )
        why = (
            f"on these it loses {observed}"
            if self.would_do is None
            else f"with as many lost as here, {100 * max(self.observed, 0):.2f} points, {self.would_do:,} would do"
        )
        why += f", and at most {drop} {unit} can be promised on these"
        otherwise = f", so {self.otherwise}" if self.otherwise else ""
        estimate = f" ({self.kind})" if self.agreement is None else ""
        return (
            f"No promise of {asked} can be made on {self.images:,} {self.unit} at "
            f"{self.confidence:.0%} confidence{estimate}{otherwise}; {why}.{shown}"
        )


_MEASURED = ("macs", "macs_thop", "params", "file_bytes", "latency_ms", "top1")


@dataclass(frozen=True)
class Measurements:
    """What a model costs and how well it does; what is None or not whole has its reason in `reasons`.

    Example:
        Measurements(macs=313_201_664, params=14_728_266, reasons={"top1": "no --data was given"})
    """

    macs: int | None = None  # multiply-adds for one image
    macs_thop: int | None = None  # the same by thop's convention
    params: int | None = None
    file_bytes: int | None = None
    latency_ms: dict[str, Any] | None = None  # engine -> {median, p95, batch, ...} or None
    top1: float | None = None  # fraction in 0..1 of the test images
    reasons: dict[str, str] = field(default_factory=dict)
    certificate: Certificate | None = None  # what is promised on fresh images; None where nothing was asked for
    figures: dict[str, float] = field(default_factory=dict)  # of a user's task on its test data, the main one first
    higher: bool = True  # the main one is the better
    seen: str | None = None  # how much of test data the figures are of, in words

    def __post_init__(self) -> None:
        missing = {name: "not measured" for name in _MEASURED if getattr(self, name) is None}
        if self.figures:
            missing.pop("top1", None)
        object.__setattr__(self, "reasons", {**missing, **self.reasons})

    @property
    def figure(self) -> Figure:
        """The main figure: top-1, or that of a user's task."""
        return Figure(next(iter(self.figures), TOP1), self.higher)

    @property
    def main(self) -> float | None:
        """Its value."""
        return next(iter(self.figures.values()), self.top1)

    def scored(self, figure: Figure, figures: Mapping[str, float], seen: str | None = None) -> "Measurements":
        """The same with the figures of an evaluation, and how much it looked at: "10,000 images"."""
        reasons = {name: reason for name, reason in self.reasons.items() if name != "top1"}
        if figure.name == TOP1:
            return replace(self, top1=figures[TOP1], reasons=reasons, seen=seen)
        return replace(self, figures=dict(figures), higher=figure.higher, reasons=reasons, seen=seen)

    def timed(self, latency_ms: dict[str, Any], missing: Mapping[str, str] | None = None) -> "Measurements":
        """These with a latency, and with the reasons for what of it is missing in place of those before."""
        others = {name: text for name, text in self.reasons.items() if name != "latency_ms"}
        return replace(self, latency_ms=latency_ms, reasons={**others, **(missing or {})})

    @classmethod
    def of(
        cls,
        cost: Profile,
        *,
        top1: float | None = None,
        file_bytes: int | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> "Measurements":
        """The measurements in a profile, with the accuracy and the file's size where they are known."""
        size = cost.file_bytes if file_bytes is None else file_bytes
        given = {"top1": top1, "file_bytes": size}
        known = {name: text for name, text in cost.reasons.items() if given.get(name) is None}
        why = {**known, **(reasons or {})}
        return cls(cost.macs, cost.macs_thop, cost.params, size, cost.latency_ms, top1, why)

    def to_json(self) -> dict[str, Any]:
        found = {**{name: plain(getattr(self, name)) for name in _MEASURED}, "reasons": dict(self.reasons)}
        if self.figures:
            found |= {"figures": plain(self.figures), "higher": self.higher}
        if self.seen is not None:
            found["seen"] = self.seen
        return found if self.certificate is None else found | {"certificate": self.certificate.to_json()}


@dataclass(frozen=True)
class LayerSize:
    """Filters of one layer."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class OnnxCheck:
    """An exported file and how far its outputs are from torch's, the worst over all outputs and batches."""

    max_abs: float  # largest absolute difference
    max_rel: float  # largest absolute difference divided by the largest absolute output of torch
    file_bytes: int  # the graph and its weights, whether in one file or two
    batches: tuple[int, ...]  # batch sizes compared
    inputs: str  # "real" or "random"
    opset: int | None = None  # of an ONNX file
