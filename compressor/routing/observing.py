"""What a skipping network does with every image of a set, in one pass, and the depth labels that follow from it.

A label says after which unit an image may leave, by activations as in the paper or by what the network gets right: 0 is
the cheapest depth, the last one runs the whole network.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import DataError
from compressor.graph.tensors import device_of
from compressor.routing.network import Routed
from compressor.routing.router import Gates, ImageRouter, sureness
from compressor.training import distributed
from compressor.training.data import AnySet, Data
from compressor.training.evaluate import evaluating, which_right
from compressor.training.task import Task


@dataclass(frozen=True, eq=False)
class Observation:
    """All on the CPU; images in the set's order."""

    right: Tensor  # bool (images, depths)
    entropy: Tensor  # of the class probabilities in nats, (images, depths)
    suffices: Tensor  # the router's probability for each depth but the last, (images, depths - 1)
    seen: tuple[Tensor, ...]  # what each gate sees, (images, features); empty unless asked for

    def __len__(self) -> int:
        return len(self.right)


@distributed.by_first
def observe(routed: Routed, part: Any, task: Task, *, keep_seen: bool = False) -> Observation:
    """Run every depth on every image of a part of the data; of several processes the first does, and all know."""
    rows: list[tuple[Tensor, ...]] = []
    seen: list[list[Tensor]] = []
    router = routed.router
    with evaluating(routed), torch.no_grad():
        for x, y in task.counted("trying all depths on", part, _BATCH, device_of(routed)):
            scores, maps = routed.all_scores(x)
            right = torch.stack([task.correct(each, y) for each in scores], 1)
            entropy = torch.stack([-sureness(each)[1][:, 2] for each in scores], 1)
            if isinstance(router, ImageRouter):
                suffices = router.suffices(x)
            else:
                places = range(routed.depths - 1)
                suffices = torch.stack([router.suffices(d, maps[d], scores[d]) for d in places], 1)
            rows.append((right.cpu(), entropy.cpu(), suffices.cpu()))
            if keep_seen and isinstance(router, Gates):
                seen.append([router.see(maps[d], scores[d]).cpu() for d in range(routed.depths - 1)])
    right, entropy, suffices = (torch.cat(column) for column in zip(*rows))
    return Observation(right, entropy, suffices, tuple(torch.cat(column) for column in zip(*seen)))


def share_right(model: nn.Module, part: Any, task: Task) -> float:
    """The share of a part's examples that a network has right."""
    return float(which_right(model, part, task).float().mean())


_BATCH = 512  # images at a time
MAPS = 10  # feature maps looked at in every layer, as in the paper
TOP = 10  # images chosen for every feature map, as in the paper


@dataclass(frozen=True)
class Balance:
    """How many images have each label."""

    counts: tuple[int, ...]  # one for each depth

    @property
    def constant(self) -> int | None:
        """The only label there is; None where there are several."""
        present = [label for label, count in enumerate(self.counts) if count]
        return present[0] if len(present) == 1 else None

    def in_words(self) -> str:
        """The share of every label, in percent."""
        total = max(1, sum(self.counts))
        return ", ".join(f"depth {label} {count / total:.1%}" for label, count in enumerate(self.counts))

    @property
    def largest_share(self) -> float:
        """The share of the commonest label: what always answering it would get right."""
        return max(self.counts) / max(1, sum(self.counts))


def balance(labels: Tensor, depths: int) -> Balance:
    """Count labels, int64 (images,)."""
    return Balance(tuple(int(count) for count in torch.bincount(labels, minlength=depths)))


def activations(routed: Routed, image_set: AnySet, data: Data) -> Tensor:
    """Mean absolute activation of the first `MAPS` feature maps behind each depth, (images, depths, maps).

    Where a layer has fewer maps, the last columns are zero for all images.
    """
    rows = []
    with evaluating(routed), torch.no_grad():
        for x, _ in data.counted("looking at maps of", image_set, _BATCH, device_of(routed)):
            row = torch.zeros(len(x), routed.depths, MAPS)
            for depth in range(routed.depths):
                x = routed.segment(depth, x)
                seen = x[:, :MAPS].flatten(2).abs().mean(2)
                row[:, depth, : seen.shape[1]] = seen.cpu()
            rows.append(row)
    return torch.cat(rows)


def paper_labels(strength: Tensor, top: int = TOP) -> tuple[Tensor, Tensor]:
    """The paper's rule: the `top` images that each map answers to most strongly get their layer as label.

    Returns their indices, ascending, and their labels. An image chosen for several layers keeps the deepest; of equal
    activations the image that comes first is chosen. Layers with fewer maps choose fewer images.

    Raises DataError where there are fewer than `top` images.
    """
    images, depths, _ = strength.shape
    if images < top:
        raise DataError(f"labelling by activations needs {top} images for every feature map, there are {images}")
    labels = torch.full((images,), -1, dtype=torch.int64)
    for depth in range(depths):
        fires = strength[:, depth].amax(0) > 0
        order = strength[:, depth, fires].argsort(dim=0, descending=True, stable=True)
        labels[order[:top].flatten()] = depth
    chosen = (labels >= 0).nonzero().flatten()
    return chosen, labels[chosen]


def outcome_labels(right: Tensor) -> Tensor:
    """The cheapest depth that is `as_good` as the whole network, int64 (images,)."""
    return as_good(right).int().argmax(1)


def as_good(right: Tensor) -> Tensor:
    """Where the network answers as well as at its full depth, bool (images, depths), from where it is right.

    An image that the whole network gets wrong is best left at the first depth: going on costs and does not help.
    """
    return right | ~right[:, -1:]
