"""An early stage and the network behind it, as one module; how it is built again from a checkpoint."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from compressor.primenet.block import PrimeStage
from compressor.primenet.settings import PrimeNetSettings

KIND = "primenet"  # of its entry in a checkpoint


class PrimeNetwork(nn.Module):
    """Images (batch, channels, height, width) -> logits (batch, classes)."""

    def __init__(
        self, stage: PrimeStage, rest: nn.Module, settings: PrimeNetSettings, origin: Mapping[str, Any] | None = None
    ) -> None:
        """`origin` says what of a user's network the stage replaced; None where it was built with the stage."""
        super().__init__()
        self.stage = stage
        self.rest = rest
        self.settings = settings
        self.origin = None if origin is None else dict(origin)
        self._learning: frozenset[nn.Module] | None = None

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.rest(self.stage(x))
        return scores

    def train(self, mode: bool = True) -> "PrimeNetwork":
        """Training mode, but for what is held."""
        super().train(mode)
        if self._learning is not None:
            for module in self.modules():
                module.training = mode and module in self._learning
        return self

    @contextmanager
    def only(self, parts: Collection[nn.Module]) -> Iterator[None]:
        """Nothing but these parts changes meanwhile: neither other weights nor other batch norms' statistics."""
        mode, learning = self.training, frozenset(module for part in parts for module in part.modules())
        free = {id(parameter) for part in parts for parameter in part.parameters()}
        wanted = {parameter: parameter.requires_grad for parameter in self.parameters()}
        self._learning = learning
        for parameter in wanted:
            parameter.requires_grad_(wanted[parameter] and id(parameter) in free)
        self.train(mode)
        try:
            yield
        finally:
            self._learning = None
            self.train(mode)
            for parameter, flag in wanted.items():
                parameter.requires_grad_(flag)

    def step(self) -> dict[str, Any]:
        """What a checkpoint has to know to make this network of a new build of the user's (see `rebuild`)."""
        block = self.stage.block
        return {
            "kind": KIND,
            "origin": self.origin,
            "scales": list(block.scales),
            "learning": block.learning,
        }
