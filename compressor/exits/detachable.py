"""A base whose first layers can be taken off: every sub-model is its own step-down and the base's remaining layers.

Reference: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks" (CNSN), section 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import misfit
from compressor.exits.detaching import Detaching
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


class Detachable(Detaching):
    """A base whose sub-models each have a step-down of their own."""

    def __init__(self, base: nn.Module, submodels: Sequence[SubModel], at: Sequence[str], norms: Norms) -> None:
        super().__init__(base, at, norms)
        self.submodels = nn.ModuleList(submodels)
        self._share()

    def learners(self) -> list[nn.Module]:
        """Every model, the base first."""
        return [self.base, *self.submodels]

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
    with misfit("sub-models do"):
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
