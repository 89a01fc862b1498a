"""A model as it stood before an edit, so that the edit can be taken back."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.graph.tensors import named_tensors
from compressor.surgery.structure import counts


@dataclass(frozen=True)
class Snapshot:
    """Copies of every parameter and buffer, of the attributes that count channels, and of the optimizer's state."""

    model: nn.Module
    optimizer: Optimizer | None
    tensors: dict[str, Tensor]
    attributes: dict[str, dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    @staticmethod
    def of(model: nn.Module, optimizer: Optimizer | None = None) -> "Snapshot":
        """Take down the model; with an optimizer its state too."""
        kept = {} if optimizer is None else {p: _copied(state) for p, state in optimizer.state.items()}
        return Snapshot(
            model,
            optimizer,
            {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()},
            {name: dict(counts(module)) for name, module in model.named_modules()},
            kept,
        )

    def restore_(self) -> None:
        """Put everything back, in place; gradients are dropped."""
        for name, tensor in named_tensors(self.model).items():
            tensor.grad = None
            tensor.data = self.tensors[name].clone()
        for name, module in self.model.named_modules():
            for key, value in self.attributes[name].items():
                kind = type(vars(module)[key])
                setattr(module, key, kind(value))
        if self.optimizer is not None:
            self.optimizer.state.clear()
            for parameter, state in self.state.items():
                self.optimizer.state[parameter] = _copied(state)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
