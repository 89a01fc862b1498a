"""From settings to a detachable network of either kind, and what its models cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, did_you_mean
from compressor.exits.detachable import Detaching, make_detachable
from compressor.exits.nested import make_nested
from compressor.exits.points import Point, Survey, begins, legal_points, survey
from compressor.exits.settings import DetachSettings
from compressor.graph.names import module_named, names_of
from compressor.graph.tensors import saved_tensors
from compressor.report.measurements import Profile

DEFAULT_EXITS = 2  # as many sub-models as in the paper's experiment


def choose_points(found: Survey, settings: DetachSettings) -> tuple[Point, ...]:
    """The points that the settings ask for, the largest sub-model first.

    By name (`at`), by fractions of the base's multiply-adds (`targets`), else `exits` of them spread evenly over the
    multiply-adds. Raises UsageError for names that are no legal points and for more sub-models than there are points,
    ModelError where no sub-model would cost less than the base.
    """
    if settings.at and settings.targets:
        raise UsageError("give cut points by name (`at`) or by cost (`targets`), not both")
    asked = settings.at or settings.targets
    if settings.exits is not None and asked and settings.exits != len(asked):
        name = "`at`" if settings.at else "`targets`"
        raise UsageError(f"{settings.exits} exits, and {len(asked)} in {name}: leave `exits` away, or make them agree")
    if settings.at:
        return _named(found, settings.at)
    exits = DEFAULT_EXITS if settings.exits is None else settings.exits
    targets = settings.targets or tuple(1 - (number + 1) / (exits + 1) for number in range(exits))
    if not targets:
        raise UsageError("no sub-model was asked for: give `exits` 1 or more")
    if not all(0 < target < 1 for target in targets):
        raise UsageError(f"`targets` {', '.join(f'{t:g}' for t in targets)}: each is a fraction between 0 and 1")
    cheaper = [point for point in found.points if point.macs < found.macs]
    if not cheaper:
        raise ModelError("no sub-model would cost less than the base: the step-downs to its feature maps are too large")
    if len(targets) > len(cheaper):
        raise UsageError(
            f"{len(targets)} exits were asked for, and there are {len(cheaper)} legal points whose sub-model costs "
            f"less than the base: ask for fewer{_listed(cheaper)}"
        )
    wanted = sorted((target * found.macs for target in targets), reverse=True)
    return nearest(sorted(cheaper, key=lambda point: -point.macs), wanted)


def nearest(points: Sequence[Point], wanted: Sequence[float]) -> tuple[Point, ...]:
    """Distinct points, one for each wanted cost, with the least sum of distances; both fall from first to last."""
    none: tuple[Point, ...] = ()
    best = [(0.0, none)] + [(float("inf"), none)] * len(wanted)
    for point in points:
        for number in range(len(wanted), 0, -1):
            distance, chosen = best[number - 1]
            distance += abs(point.macs - wanted[number - 1])
            if distance < best[number][0]:
                best[number] = (distance, (*chosen, point))
    return best[-1][1]


def _named(found: Survey, names: Sequence[str]) -> tuple[Point, ...]:
    chosen = [_point(found, name) for name in names]
    if len({point.cut.index for point in chosen}) < len(chosen):
        raise UsageError(f"`at` {','.join(names)} names one cut point twice")
    return tuple(sorted(chosen, key=lambda point: point.cut.index))


def _point(found: Survey, name: str) -> Point:
    """The point by its name, or by that of a module inside which nothing ran before the cut."""
    modules, names = [each for each, _ in found.base.named_modules()], names_of(found.base)
    meant = module_named(name, names, modules)
    for point in found.points:
        if begins(name, point.at, point.cut) or (meant and begins(meant, point.at, point.cut)):
            return point
    known = [*modules, *(point.at for point in found.points)]
    problem = "is no legal cut point" if meant else f"is no module of the network{did_you_mean(name, known)}"
    near = ", ".join(_nearest_names(found, meant or name, modules))
    raise UsageError(f"{name!r} {problem}; the nearest legal ones are {near}")


def _nearest_names(found: Survey, name: str, modules: list[str], count: int = 4) -> list[str]:
    """Names of the legal points nearest to a module; the first of all where there is no such module."""
    order = {each: place for place, each in enumerate(modules)}
    near = list(found.points)
    if name in order:
        near.sort(key=lambda point: abs(order.get(point.cut.read_by, 0) - order[name]))
    near = near[: count if name in order else 8]
    return [point.at for point in sorted(near, key=lambda point: point.cut.index)]


def _listed(points: Sequence[Point]) -> str:
    return f" ({', '.join(point.at for point in points)})" if points else ""


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
