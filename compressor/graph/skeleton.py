"""A copy of a model that may be edited and run freely, without its data or with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from compressor.graph.copies import HAVE_CODE, begun, copied, is_users
from compressor.graph.records import TensorRef
from compressor.graph.state import State, same
from compressor.graph.tensors import named_modules, named_tensors
from compressor.graph.values import Values, may_be_read


class Replica:
    """A skeleton with all that makes each of its runs start alike: its state, and the values that its code may read."""

    def __init__(self, model: nn.Module, *, real: bool = False) -> None:
        readable: list[tuple[Tensor, Tensor]] = []
        self.model = skeleton(model, real=real, readable=readable)
        self.modules: dict[str, nn.Module] = dict(named_modules(self.model))
        self.tensors = named_tensors(self.model, self.modules.items())
        self.device = next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))
        self.values = Values(() if real else readable)
        self._training: bool | None = None  # the mode of the last run
        self._keeps_mode = False
        self._keeps_mode = self._only_sets_modes()
        self.state = State(self.modules.values())

    @cached_property
    def references(self) -> list[tuple[Tensor, TensorRef]]:
        """The model's own tensors, parameters and buffers first, by the numbers that they have in every run."""
        rest = (value for *_, value in self.state.held if isinstance(value, Tensor))
        own = {id(each): each for each in (*self.tensors.values(), *rest) if not each.is_nested}
        return [(each, TensorRef(at, tuple(each.shape), each.dtype)) for at, each in enumerate(own.values())]

    def set_mode(self, training: bool) -> None:
        """`model.train(training)`, unless the last run was in that mode."""
        if training == self._training:
            return
        self._training = training
        if self._keeps_mode:  # without a search for the children of each
            for module in self.modules.values():
                vars(module)["training"] = training
        else:
            set_mode(self.model, training)

    def _only_sets_modes(self) -> bool:
        """Whether `train()` sets the attribute `training` of each module and nothing else, where the mode is kept.

        A library's own is tried. What a class forgets in training mode, as a cache, it forgets so before the first run.
        """
        modules = [*map(vars, self.modules.values())]
        kinds = {type(module) for module in self.modules.values()}
        own = [kind.train for kind in kinds if kind.train is not nn.Module.train]
        elsewhere = any(hasattr(kind, "training") or issubclass(kind, torch.jit.ScriptModule) for kind in kinds)
        elsewhere |= any("train" in held for held in modules)
        if not own and not elsewhere:
            return True
        trained = [{**held, "training": True} for held in modules]
        self.set_mode(True)
        return not elsewhere and not any(map(is_users, own)) and same(modules, trained)

    @contextmanager
    def evaluating(self) -> Iterator[set[str] | None]:
        """Meanwhile it is in evaluation mode, and Python modules whose code asks for the mode are noted.

        None where that cannot be seen: torch's scripts and classes with a `train()` or `training` keep it elsewhere.
        """
        self.set_mode(False)
        if not self._keeps_mode:
            yield None
            return
        asked: set[str] = set()
        whole = [(space, space["_modules"]) for space in map(vars, self.modules.values())]
        for space, inner in whole:
            space["_modules"] = _Asked(inner, asked)
            del space["training"]
        try:
            yield asked
        finally:
            for space, inner in whole:
                space["_modules"], space["training"] = inner, False


class _Asked(dict[str, Any]):
    """The submodules of a module without a mode: torch looks for `training` here last, and who asked is noted."""

    def __init__(self, inner: dict[str, Any], asked: set[str]) -> None:
        super().__init__(inner)
        self._asked = asked

    def __contains__(self, name: object) -> bool:
        return name == "training" or super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        if name != "training":
            return super().__getitem__(name)
        self._asked.add(sys._getframe(2).f_globals.get("__name__", ""))  # behind `nn.Module.__getattr__`
        return False


def set_mode(model: nn.Module, training: bool) -> None:
    """`model.train(training)`, also for exported programs, whose `train` and `eval` refuse."""
    try:
        model.train(training)
    except NotImplementedError:
        for module in model.modules():
            module.training = training


def skeleton(model: nn.Module, *, real: bool = False, readable: list[tuple[Tensor, Tensor]] | None = None) -> nn.Module:
    """A copy of the model that may be edited and run freely: on the meta device, or with real data if `real`.

    Into `readable` go its tensors whose values code may read, each with the one that it stands for.
    """
    memo: dict[int, Any] = {}
    plain, others = [], 0
    for _, module in named_modules(model):
        made, rest = begun(module)
        for tensor in (*module._parameters.values(), *module._buffers.values(), *map(made.get, rest)):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = stand_in = _stand_in(tensor, real)
                if readable is not None and may_be_read(tensor, module):
                    readable.append((stand_in, tensor))
        kind: Any = type(module)
        if isinstance(module, HAVE_CODE):
            others += 1
        else:  # whatever the class says about being made or copied
            memo[id(module)] = object.__new__(kind)
            plain.append((module, made, rest))
    if others:  # they are copied with what they hold, which has to be whole by then
        plain.sort(key=lambda each: sum(1 for _ in each[0].modules()))
    for module, made, rest in plain:
        for key in rest:
            made[key] = copied(made[key], memo)
        vars(memo[id(module)]).update(made)
    result: nn.Module = copied(model, memo)
    return result


def _stand_in(tensor: Tensor, real: bool) -> Tensor:
    made = tensor.detach().clone() if real else blank(tensor)
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def blank(tensor: Tensor) -> Tensor:
    """A tensor on the meta device with the same shape and layout."""
    if isinstance(tensor, FakeTensor):  # what torch makes like it is another one
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")
