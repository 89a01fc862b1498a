"""A base and its sub-models in one module, on the same weights: what detachable networks of either kind have."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from compressor.graph.cuts import Norms


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
