"""The first phase: every capsule learns from its own loss while the batch passes, and the best scale is chosen."""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compressor.errors import UsageError
from compressor.graph.tensors import device_of
from compressor.primenet.network import PrimeNetwork
from compressor.primenet.settings import PrimeNetSettings
from compressor.training import checkpoint
from compressor.training.data import cross_entropy
from compressor.training.distributed import add_up_
from compressor.training.evaluate import evaluating
from compressor.training.loop import backward
from compressor.training.task import Model, Task

# Each capsule's own Adam, besides its learning rate (section 4.1; Keras's epsilon).
LOCAL_BETAS, LOCAL_EPS = (0.99, 0.999), 1e-7

_BATCH = 512  # images that scales are judged on at a time


class LocalLearning:
    """The step of `training.loop.fit` for a network whose block is learning; holds each capsule's own Adam.

    A capsule's weights are updated before the next capsule runs, so of its activations only the maps that win stay
    alive when the rest of the network begins. The rest is updated by the loop's optimizer, which finds no gradients in
    the capsules and leaves them alone.

    Reference: section 3.2 (weights updated in the forward pass), equations 1-5. Differs: the loss is the cross-entropy
    of the paper, where the authors' code compares with a map of ones. A batch that memory has cut into pieces updates
    the capsules after every piece.
    """

    def __init__(
        self,
        network: PrimeNetwork,
        settings: PrimeNetSettings,
        loss_of: Callable[[Model, Any, Any], tuple[Tensor, Tensor | None]] = cross_entropy,
        labels: Callable[[Any], Tensor] = lambda y: y,
    ) -> None:
        """`loss_of` is the network's; capsules learn from the cross-entropy with `labels` of a batch."""
        self.network, self.loss_of, self.labels = network, loss_of, labels
        self.optimizers: dict[str, torch.optim.Adam] = {}
        for name, part in self._parts().items():
            self.optimizers[name] = torch.optim.Adam(
                part.parameters(),
                lr=settings.local_lr,
                betas=LOCAL_BETAS,
                eps=LOCAL_EPS,
            )
        self._begin_epoch()

    def __call__(self, model: nn.Module, x: Tensor, y: Any) -> tuple[Tensor, Tensor | None]:
        """One batch: images (batch, channels, height, width), and what the task has beside them.

        Returns the loss of the network plus that of the capsule it was given (section 5.1), and the right answers.
        Raises UsageError for a batch of one image.
        """
        refuse_single(len(x))
        maps, local, chosen = self.learn(x, self.labels(y))
        scores = self.network.rest(self.network.stage.join(maps, x))
        loss, right = self.loss_of(lambda _: scores, x, y)
        backward(loss)
        self._note(local, chosen)
        return loss.detach() + local.amin(), right

    def learn(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update every capsule by its own loss on the batch.

        Returns the maps of the capsule with the smallest loss, from before its update; the losses (scales,); and the
        number of that capsule. Nothing of it is attached to a graph. The choice is made on the device: looking at a
        loss would wait for it.
        """
        losses: list[Tensor] = []
        winner = torch.zeros((), dtype=torch.int64, device=x.device)
        best: Tensor | None = None
        for number, (name, part) in enumerate(self._parts().items()):
            maps = part["capsule"](x.detach())
            loss = functional.cross_entropy(part["head"](maps).float(), y)
            backward(loss)
            loss, _, _ = add_up_(part, loss, None, len(x))
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)
            maps, loss = maps.detach(), loss.detach()
            if best is None:
                best, lowest = maps, loss
            else:
                better = loss < lowest
                best, lowest = torch.where(better, maps, best), torch.minimum(loss, lowest)
                winner = torch.where(better, number, winner)
            losses.append(loss)
        assert best is not None
        return best, torch.stack(losses), winner

    def close_epoch(self) -> dict[str, dict[str, float]]:
        """For each scale its mean loss in the epoch that has ended, and in how many batches it was the smallest."""
        batches = max(int(self._chosen.sum()), 1)
        scales = list(self.network.stage.block.capsules)
        row = {
            "local_losses": dict(zip(scales, (self._losses / batches).tolist())),
            "chosen": dict(zip(scales, self._chosen.tolist())),
        }
        self._begin_epoch()
        return row

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on from here, as plain data and tensors."""
        parts = self._parts()
        states = {name: checkpoint.optimizer_state(adam, parts[name]) for name, adam in self.optimizers.items()}
        return {"optimizers": states, "losses": self._losses.cpu(), "chosen": self._chosen.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict` back."""
        parts = self._parts()
        for name, adam in self.optimizers.items():
            checkpoint.restore_optimizer_(adam, state["optimizers"][name], parts[name])
        self._losses, self._chosen = state["losses"].clone(), state["chosen"].clone()

    def _parts(self) -> dict[str, nn.ModuleDict]:
        """For each scale the capsule and its local classifier, as one module."""
        block = self.network.stage.block
        assert block.learning, "the block has settled"
        return {
            name: nn.ModuleDict({"capsule": capsule, "head": block.heads[name]})
            for name, capsule in block.capsules.items()
        }

    def _begin_epoch(self) -> None:
        count = len(self.network.stage.block.scales)
        self._losses, self._chosen = torch.zeros(count), torch.zeros(count, dtype=torch.int64)

    def _note(self, losses: Tensor, chosen: Tensor) -> None:
        device = losses.device
        self._losses = self._losses.to(device) + losses
        self._chosen = self._chosen.to(device) + functional.one_hot(chosen, len(losses))


def refuse_single(batch: int) -> None:
    """Raises UsageError for batches of one image, which have no statistics for batch norm."""
    if batch < 2:
        raise UsageError("batches of one image: batch norm in the block needs more, give 2 or larger")


def local_losses(network: PrimeNetwork, part: Any, task: Task) -> dict[int, float]:
    """Mean cross-entropy, in nats, of each scale's local classifier over a part of the data, in eval mode."""
    count = 0
    block, device = network.stage.block, device_of(network)
    sums = {scale: torch.zeros((), dtype=torch.float64, device=device) for scale in block.scales}
    with evaluating(network), torch.no_grad():
        for x, y in task.counted("comparing scales on", part, _BATCH, device):
            labels = task.labels(y)
            count += len(labels)
            for scale in block.scales:
                scores = block.heads[str(scale)](block.capsules[str(scale)](x))
                sums[scale] += functional.cross_entropy(scores.float(), labels, reduction="sum")
    return {scale: float(total) / count for scale, total in sums.items()}


def best_scale(losses: dict[int, float]) -> int:
    """The scale with the smallest loss, the smaller one where equal."""
    return min(losses, key=lambda scale: (losses[scale], scale))


class WithOneScale(nn.Module):
    """The network as it would be if this scale were kept, on the network's own layers."""

    def __init__(self, network: PrimeNetwork, scale: int) -> None:
        super().__init__()
        self.network = network
        self.scale = str(scale)

    def forward(self, x: Tensor) -> Tensor:
        stage = self.network.stage
        scores: Tensor = self.network.rest(stage.join(stage.block.capsules[self.scale](x), x))
        return scores


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
