"""How much memory a step of training takes, and what local learning saves of it."""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compressor.primenet.learning import LocalLearning
from compressor.primenet.network import PrimeNetwork
from compressor.training.data import cross_entropy
from compressor.training.loop import backward


@dataclass(frozen=True)
class TrainingMemory:
    """Peak bytes of activations and gradients in one step, without weights, images and the optimizers' averages."""

    batch: int
    local: int  # as PrimeNet learns: every capsule by itself, the rest afterwards
    joint: int  # the same losses of the same network, back-propagated together at the end
    plain: dict[int, int]  # scale -> the network with this one capsule, trained end to end


def training_memory(network: PrimeNetwork, x: Tensor, y: Tensor) -> TrainingMemory:
    """Measure one step of each kind on copies of a network whose block is learning, on the device of `x`."""

    def local() -> Callable[[], Any]:
        one = copy.deepcopy(network).train()
        learning = LocalLearning(one, one.settings)
        learning(one, x, y)  # the optimizers' averages are made in the first step
        one.zero_grad(set_to_none=True)
        return lambda: learning(one, x, y)

    def joint() -> Callable[[], Any]:
        one = copy.deepcopy(network).train()
        return lambda: joint_step(one, x, y)

    def plain(scale: int) -> Callable[[], Any]:
        one = copy.deepcopy(network).train()
        one.stage.block.settle_((scale,))
        return lambda: backward(cross_entropy(one, x, y)[0])

    return TrainingMemory(
        batch=len(x),
        local=peak_bytes(local()),
        joint=peak_bytes(joint()),
        plain={scale: peak_bytes(plain(scale)) for scale in network.stage.block.scales},
    )


def joint_step(network: PrimeNetwork, x: Tensor, y: Tensor) -> Tensor:
    """The losses of PrimeNet with everything attached: one backward pass from the network's loss and all local ones."""
    block = network.stage.block
    maps = [capsule(x) for capsule in block.capsules.values()]
    losses = [functional.cross_entropy(head(each).float(), y) for head, each in zip(block.heads.values(), maps)]
    chosen, lowest = maps[0], losses[0]
    for each, loss in zip(maps[1:], losses[1:]):
        chosen, lowest = torch.where(loss < lowest, each, chosen), torch.minimum(loss, lowest)
    scores = network.rest(network.stage.join(chosen, x))
    total = functional.cross_entropy(scores.float(), y) + torch.stack(losses).sum()
    total.backward()
    return total.detach()


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes of tensors made by `run` that lived at once; scratch space inside operators is not seen."""
    watch = _Watch()
    with watch:
        run()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Counts the memory of every tensor that an operator makes, from then until nobody holds it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_identity(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and _identity(leaf) not in before | self._known:
                self._add(leaf)
        return output

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _identity(tensor)
        size = storage.nbytes()
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
