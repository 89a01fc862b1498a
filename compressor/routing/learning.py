"""How a skipping network and its router learn: steps for the training loop, and the gates from one observation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import DataError, ModelError
from compressor.graph.tensors import device_of
from compressor.report.progress import progress
from compressor.routing.network import Routed
from compressor.routing.router import Gates
from compressor.training.data import cross_entropy
from compressor.training.loop import backward
from compressor.training.microbatches import Step
from compressor.training.numerics import derive_seed, generator
from compressor.training.task import Model

EARLY_WEIGHT = 0.3  # of each earlier depth's loss; the last one's is 1


def all_depths(
    routed: Routed,
    loss_of: Callable[[Model, Any, Any], tuple[Tensor, Tensor | None]] = cross_entropy,
    *,
    early_weight: float = EARLY_WEIGHT,
) -> Step:
    """Every image at every depth: the loss of the last depth, plus the earlier ones' times a weight."""

    def step(_: nn.Module, x: Tensor, y: Any) -> tuple[Tensor, Tensor | None]:
        depths = Depths(routed, x)
        losses, counts = zip(*(loss_of(partial(depths, depth), x, y) for depth in range(routed.depths)), strict=True)
        backward(losses[-1] + early_weight * torch.stack(losses[:-1]).sum())
        return losses[-1].detach(), counts[-1]

    return step


class Depths:
    """The depths of a network as models: an input that all of them are called with runs once."""

    def __init__(self, routed: Routed, x: Tensor) -> None:
        self.routed, self.x = routed, x
        self.scores, _ = routed.all_scores(x)

    def __call__(self, depth: int, x: Tensor) -> Tensor:
        same = x is self.x or (x.shape == self.x.shape and torch.equal(x, self.x))
        return (self.scores if same else self.routed.all_scores(x)[0])[depth]


def by_label(routed: Routed) -> Step:
    """Every image at its labelled depth only: what lies behind is neither run nor changed.

    Labels are int64 (batch, 2): the class, and the depth. Layers that no image of a batch needs get no gradient at all,
    so neither weight decay nor momentum moves them.

    Reference: section 3 of the paper, on CNN 3.
    """

    def step(_: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        classes, depths = y.unbind(1)
        scores = routed.scores_at(x, depths)
        loss = functional.cross_entropy(scores.float(), classes)
        backward(loss)
        return loss.detach(), (scores.detach().argmax(1) == classes).sum()

    return step


def image_router(depths: Tensor, count: int, *, weighted: bool) -> Step:
    """The image router against depth labels; with `weighted` every label counts as much as any other in total.

    Our reading: the paper's rule leaves few shallow labels, since the deeper label of an image wins.
    """
    weights = None
    if weighted:
        counts = torch.bincount(depths, minlength=count).float()
        weights = torch.where(counts > 0, len(depths) / (counts.clamp_min(1) * (counts > 0).sum()), 0.0)

    def step(router: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scores = router(x)
        loss = functional.cross_entropy(scores.float(), y, None if weights is None else weights.to(x.device))
        backward(loss)
        return loss.detach(), (scores.detach().argmax(1) == y).sum()

    return step


def fit_gates(gates: Gates, seen: tuple[Tensor, ...], suffices: Tensor, *, epochs: int, seed: int) -> None:
    """Train the gates in place: gate d learns whether an image may leave at depth d, bool (images, gates or more).

    `seen` holds what every gate sees, (images, features); Adam with decoupled weight decay, the rate falls to zero.

    Raises DataError with fewer than two batches' worth of images.
    """
    device = device_of(gates)
    batch = min(256, len(suffices) // 2)
    if batch < 2:
        raise DataError(f"the gates cannot learn from {len(suffices)} images: give more training data")
    for depth, features in enumerate(seen):
        gate = gates.gates[depth].train()
        x, y = features.to(device), suffices[:, depth].float().to(device)
        optimizer = torch.optim.AdamW(gate.parameters(), lr=1e-2, weight_decay=1e-3)
        source = generator(torch.device("cpu"), seed, "gate", depth)
        per_epoch = len(y) // batch
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * per_epoch)
        for epoch in range(epochs):
            progress("teaching gates, epoch", depth * epochs + epoch, len(seen) * epochs)
            order = torch.randperm(len(y), generator=source).to(device)
            for chosen in order.split(batch)[:per_epoch]:
                loss = functional.binary_cross_entropy_with_logits(gate(x[chosen]), y[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        gate.eval()


def reset_(network: nn.Module, seed: int) -> None:
    """Give every layer of a network new random weights, in place; a skipping network made of it shares them.

    Raises ModelError for parameters that no layer knows how to draw.
    """
    layers = dict(network.named_modules())
    strange = [name for name, _ in network.named_parameters() if not _draws(layers[name.rpartition(".")[0]])]
    if strange:
        raise ModelError(f"the weights {strange[0]} belong to no layer of torch's and cannot be drawn: use `init` copy")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "scratch"))
        for layer in layers.values():
            if _draws(layer):
                layer.reset_parameters()


def _draws(layer: nn.Module) -> bool:
    return callable(getattr(layer, "reset_parameters", None))
