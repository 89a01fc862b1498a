"""The cost of a model as plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any

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
