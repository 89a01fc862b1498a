"""From settings to a detachable network of either kind, and what its models cost."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from compressor.exits.choose import choose_points
from compressor.exits.detachable import Detachable, make_detachable
from compressor.exits.nested import Nested, make_nested
from compressor.exits.points import legal_points, survey
from compressor.exits.settings import DetachSettings
from compressor.graph.tensors import saved_tensors
from compressor.report.cost import Profile

Detaching = Detachable | Nested
MANY_MODELS = 4  # more of them, and the user is told what training costs


def cut(base: nn.Module, example: Tensor, settings: DetachSettings) -> tuple[Detaching, list[str]]:
    """Cut the sub-models that the settings ask for out of a base, which becomes part of the result; notes for the user.

    `example` is (batch, channels, height, width). Raises ModelError and UsageError for a wish that cannot be met.
    """
    if settings.method == "nsn":
        nested = make_nested(survey(base, example), settings)
        slow = nested.exits + 1 > MANY_MODELS
        return nested, [f"{nested.exits + 1} models: each batch passes through all of them"] if slow else []
    found = legal_points(base, example)
    points = choose_points(found, settings)
    notes = [f"{point.at}: {point.plan.note}" for point in points if point.plan.note is not None]
    notes += [f"{point.at}: its sub-model costs no less than the base" for point in points if point.macs >= found.macs]
    return make_detachable(found, {point.at: point.plan for point in points}, settings.norms), notes


@dataclass(frozen=True)
class ModelCost:
    """What one model of a detachable network costs for one image."""

    exit: int  # 0: the base
    at: str | None  # the first module of the base that a sub-model keeps
    macs: int
    macs_thop: int | None
    params: int
    shared_params: int  # of them, those that another model uses too
    own_params: int  # the others: a sub-model's step-down, the base's first layers
    latency_ms: dict[str, Any] | None  # engine -> {median, p95, ...}
    reasons: dict[str, str]  # why something was not measured

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def model_costs(
    model: Detaching, example: Tensor, measure: Callable[[nn.Module, Tensor], Profile]
) -> Iterator[ModelCost]:
    """The base's costs, then every sub-model's, as `measure` finds them."""
    parts = [model.detach(exit) for exit in range(model.exits + 1)]
    held = [{id(parameter) for parameter in part.parameters()} for part in parts]
    for exit, part in enumerate(parts):
        cost = measure(part, example)
        elsewhere = set().union(*(ids for other, ids in enumerate(held) if other != exit))
        shared = sum(parameter.numel() for parameter in part.parameters() if id(parameter) in elsewhere)
        at = model.at[exit - 1] if exit else None
        reasons = {name: why for name, why in cost.reasons.items() if name != "file_bytes"}
        yield ModelCost(
            exit, at, cost.macs, cost.macs_thop, cost.params, shared, cost.params - shared, cost.latency_ms, reasons
        )


def added_bytes(model: Detaching) -> tuple[int, int]:
    """What is stored beyond the base: bytes of the step-downs, and of the sub-models' own batch norms."""
    steps = norms = 0
    for name, tensor in saved_tensors(model).items():
        size = tensor.numel() * tensor.element_size()
        if ".step_down." in name:
            steps += size
        elif not name.startswith("base."):
            norms += size
    return steps, norms
