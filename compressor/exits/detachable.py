"""A base whose first layers can be taken off: every sub-model is its own step-down and the base's remaining layers.

Reference: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks" (CNSN), section 2.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import misfit
from compressor.exits.points import StepDown, StepDownPlan, Survey, plan_step_down
from compressor.files.plain import from_plain, plain
from compressor.graph.cuts import Norms, tail


class Detaching(nn.Module):
    """Exit 0 is the base, a higher exit a smaller sub-model.

    Called without an exit it is the base, as long as nothing learns. Where something does, be it that one layer of
    batch norm takes statistics, it runs every model and gives all outputs as a tuple, the base's first: whoever trains
    it, re-estimates it or follows its channels sees one network, and an edit of the base holds for every sub-model.
    The state dict holds what the models share once, under the base's names.
    """

    def __init__(self, base: nn.Module, at: Iterable[str], norms: Norms) -> None:
        super().__init__()
        self.base = base
        self.at = tuple(at)  # the first module of the base that each sub-model keeps
        self.norms = norms
        self._aliases: dict[str, str] = {}

    def _share(self) -> None:
        """Once all parts are there: from now on the state dict holds every tensor under its first name only.

        Loading gives the tensor to all of its names, as they are shared now.
        """
        self.train(self.base.training)
        first: dict[int, str] = {}
        for name, tensor in _tensors(self).items():
            if first.setdefault(id(tensor), name) != name:
                self._aliases[name] = first[id(tensor)]
        self.register_state_dict_post_hook(_drop_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_aliases)  # type: ignore[no-untyped-call]

    @property
    def exits(self) -> int:
        """The number of sub-models."""
        return len(self.at)

    def learners(self) -> list[nn.Module]:
        """Every model as it is trained, the base first."""
        raise NotImplementedError

    def step(self) -> dict[str, Any]:
        """How to make this of its base again, as plain data; `rebuild` takes it."""
        raise NotImplementedError

    def forward(self, x: Tensor, exit: int | None = None) -> Any:
        """The output of one model, `(batch, classes)`; or of all, as described above."""
        if exit is not None:
            return self._learner(exit)(x)
        if not any(module.training for module in self.modules()):
            return self.base(x)
        return tuple(_first(model(x)) for model in self.learners())

    def detach(self, exit: int) -> nn.Module:
        """The model of an exit as a module of its own; its parameters are this module's, not copies.

        Raises IndexError for an exit that does not exist.
        """
        return self._learner(exit) if exit else self.base

    def _learner(self, exit: int) -> nn.Module:
        if not 0 <= exit <= self.exits:
            raise IndexError(f"there is no exit {exit}: 0 is the base, {self.exits} the smallest sub-model")
        return self.learners()[exit]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Detaching":
        """Tensors are shared again after each of them was replaced by itself on another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tensors = _tensors(self)
        for name, first in self._aliases.items():
            owner, _, leaf = name.rpartition(".")
            held = self.get_submodule(owner)
            own: dict[str, Any] = held._buffers if leaf in held._buffers else held._parameters
            own[leaf] = tensors[first]
        return self


def _first(output: Any) -> Any:
    """What a network classifies by; in training some give auxiliary outputs behind it."""
    return output[0] if isinstance(output, tuple) else output


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _drop_aliases(module: Detaching, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in module._aliases:
        state.pop(prefix + name, None)


def _add_aliases(module: Detaching, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name, first in module._aliases.items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


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
