"""A base whose first layers can be taken off: every sub-model is its own step-down and the base's remaining layers.

Reference: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks" (CNSN), section 2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import FileError, ModelError
from compressor.exits.once import store_once_, tie_
from compressor.exits.points import Survey
from compressor.exits.stepdown import StepDown, StepDownPlan, plan_step_down
from compressor.files.plain import from_plain, plain
from compressor.graph.cuts import Norms, tail

KIND = "detach"  # of the entry among a checkpoint's steps


class SubModel(nn.Module):
    """A step-down and the base's layers behind a cut, `(batch, channels, height, width)` to the base's output."""

    def __init__(self, step_down: StepDown, rest: fx.GraphModule) -> None:
        super().__init__()
        self.step_down = step_down
        self.tail = rest

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.step_down(x))


class Detachable(nn.Module):
    """The base and its sub-models in one module; exit 0 is the base, a higher exit a smaller sub-model.

    Called without an exit it is the base, as long as nothing learns. Where something does, be it that one layer of
    batch norm takes statistics, it runs every model and gives all outputs as a tuple, the base's first: whoever trains
    it, re-estimates it or follows its channels sees one network, and an edit of the base holds for every sub-model.
    The state dict holds what the models share once, under the base's names.
    """

    def __init__(self, base: nn.Module, submodels: Sequence[SubModel], at: Sequence[str], norms: Norms) -> None:
        super().__init__()
        self.base = base
        self.submodels = nn.ModuleList(submodels)
        self.at = tuple(at)  # the first module of the base that each sub-model keeps
        self.norms = norms
        self.train(base.training)
        store_once_(self)

    @property
    def exits(self) -> int:
        """The number of sub-models."""
        return len(self.submodels)

    def forward(self, x: Tensor, exit: int | None = None) -> Any:
        """The output of one model, `(batch, classes)`; or of all, as described above."""
        if exit is not None:
            return self.detach(exit)(x)
        if not any(module.training for module in self.modules()):
            return self.base(x)
        return tuple(_first(self.detach(number)(x)) for number in range(self.exits + 1))

    def detach(self, exit: int) -> nn.Module:
        """The model of an exit as a module of its own; its parameters are this module's, not copies.

        Raises IndexError for an exit that does not exist.
        """
        if not 0 <= exit <= self.exits:
            raise IndexError(f"there is no exit {exit}: 0 is the base, {self.exits} the smallest sub-model")
        return self.submodels[exit - 1] if exit else self.base

    def learners(self) -> list[nn.Module]:
        """Every model as it is trained, the base first."""
        return [self.detach(exit) for exit in range(self.exits + 1)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Detachable":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tie_(self)
        return self

    def step(self) -> dict[str, Any]:
        """How to make this of its base again, as plain data; `rebuild` takes it."""
        plans = [part.step_down.plan for part in _submodels(self)]
        exits = [{"at": name, "step_down": plain(plan)} for name, plan in zip(self.at, plans, strict=True)]
        return {"kind": KIND, "input_shape": [plans[0].in_channels, *plans[0].image], "bn": self.norms, "exits": exits}


def make_detachable(found: Survey, plans: Mapping[str, StepDownPlan], norms: Norms) -> Detachable:
    """Cut sub-models out of a surveyed base, which becomes part of the result: at each name, with its step-down.

    Raises KeyError for a name at which nothing starts.
    """
    starts = {name: index for index, name in enumerate(found.names)}
    submodels = []
    for name, plan in plans.items():
        rest = tail(found.chain, found.base, starts[name], found.end, norms)
        submodels.append(SubModel(StepDown(plan).to(found.like), rest))
    return Detachable(found.base, submodels, tuple(plans), norms)


def rebuild(base: nn.Module, step: Mapping[str, Any]) -> Detachable:
    """Make a base detachable as a checkpoint's entry says; the weights of the step-downs are still random.

    Raises FileError for an entry that does not fit the base.
    """
    try:
        found = Survey(base, tuple(int(size) for size in step["input_shape"]))
        plans = {str(each["at"]): from_plain(StepDownPlan, each["step_down"]) for each in step["exits"]}
        for name, plan in plans.items():
            feature = found.chain.cuts[found.names.index(name)].shape
            if plan != plan_step_down(found.input_shape, feature, norm=plan.norm, activation=plan.activation):
                raise ValueError(f"the step-down at {name} does not make {feature}")
        norms = step["bn"]
        if norms not in ("stats", "switchable", "shared") or not plans:
            raise ValueError(f"bn {norms!r}, {len(plans)} exits")
        return make_detachable(found, plans, norms)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, ModelError) as error:
        raise FileError(
            f"the checkpoint's sub-models do not fit its network ({type(error).__name__}: {error}): it is damaged, or "
            "of another architecture"
        ) from error


@torch.no_grad()
def with_own_statistics(model: Detachable) -> Detachable:
    """The same models, each with batch-norm statistics of its own; those of shared ones start as they are."""
    if model.norms != "shared":
        return model
    fresh = rebuild(model.base, {**model.step(), "bn": "stats"})
    pairs = zip(_submodels(model), _submodels(fresh), strict=True)
    return Detachable(model.base, [SubModel(old.step_down, new.tail) for old, new in pairs], model.at, "stats")


def _submodels(model: Detachable) -> list[SubModel]:
    return [each for each in model.submodels if isinstance(each, SubModel)]


def _first(output: Any) -> Any:
    """What a network classifies by; in training some give auxiliary outputs behind it."""
    return output[0] if isinstance(output, tuple) else output
