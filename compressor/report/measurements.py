"""What a model costs and how well it does, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from compressor.report.certificate import Certificate
from compressor.report.cost import Profile
from compressor.report.figure import TOP1, Figure

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
        """Plain data."""
        found = {**{name: plain(getattr(self, name)) for name in _MEASURED}, "reasons": dict(self.reasons)}
        if self.figures:
            found |= {"figures": plain(self.figures), "higher": self.higher}
        if self.seen is not None:
            found["seen"] = self.seen
        return found if self.certificate is None else found | {"certificate": self.certificate.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurements":
        """The measurements that `to_json` wrote."""
        promised = data.get("certificate")
        return cls(
            **{name: data.get(name) for name in _MEASURED},
            reasons=dict(data.get("reasons", {})),
            certificate=None if promised is None else Certificate.from_json(promised),
            figures=dict(data.get("figures", {})),
            higher=bool(data.get("higher", True)),
            seen=data.get("seen"),
        )


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


def plain(value: Any) -> Any:
    """Types that JSON has: tuples become lists, dataclasses dicts, numbers of NumPy and torch Python's."""
    if isinstance(value, Measurements):
        return value.to_json()
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.item()) if hasattr(value, "item") else str(value)
