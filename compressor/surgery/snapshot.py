"""A model as it stood before an edit, so that the edit can be taken back."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.graph.tensors import named_tensors
from compressor.surgery.assign import assign_


@dataclass(frozen=True)
class Snapshot:
    """Every parameter and buffer with its gradient, every module's attributes, and the optimizer's state."""

    optimizer: Optimizer | None
    tensors: tuple[tuple[Tensor, Tensor, Tensor | None], ...]  # with data and gradient
    attributes: tuple[tuple[nn.Module, dict[str, Any], dict[str, nn.Module | None]], ...]  # with its submodules
    state: dict[Tensor, dict[str, Any]]
    copies: bool

    @staticmethod
    def of(
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        copies: bool = True,
        only: tuple[Iterable[Tensor], Iterable[nn.Module]] | None = None,
    ) -> "Snapshot":
        """Take down the model, or `only` some of its tensors and modules; with an optimizer its state too.

        Without `copies` only what is replaced meanwhile can be put back, not what is written to.
        """
        take = _copy if copies else _same
        tensors, modules = (named_tensors(model).values(), model.modules()) if only is None else only
        return Snapshot(
            optimizer,
            tuple((each, take(each.detach()), take(each.grad)) for each in tensors),
            tuple((module, dict(vars(module)), dict(module._modules)) for module in modules),
            {} if optimizer is None else _state(optimizer.state, take),
            copies,
        )

    def restore_(self) -> None:
        """Put everything back, in place."""
        take = _copy if self.copies else _same
        for tensor, data, grad in self.tensors:
            if self.copies or tensor.shape != data.shape or tensor.data_ptr() != data.data_ptr():
                tensor.grad = None
                assign_(tensor, take(data))
            tensor.grad = take(grad)
        for module, attributes, inner in self.attributes:
            _refill_(vars(module), attributes)
            _refill_(module._modules, inner)
        if self.optimizer is not None:
            _refill_(self.optimizer.state, _state(self.state, take))


@contextmanager
def all_or_nothing(*before: Snapshot) -> Iterator[None]:
    """Restore what was taken down if anything is raised meanwhile, Ctrl-C included."""
    try:
        yield
    except BaseException:
        for each in before:
            each.restore_()
        raise


def _refill_(held: MutableMapping[Any, Any], content: Mapping[Any, Any]) -> None:
    held.clear()
    held.update(content)


def _state(state: Mapping[Tensor, dict[str, Any]], take: Callable[[Any], Any]) -> dict[Tensor, dict[str, Any]]:
    return {parameter: {key: take(value) for key, value in held.items()} for parameter, held in state.items()}


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _same(value: Any) -> Any:
    return value
