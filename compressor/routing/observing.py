"""What a skipping network does with every image of a set: one pass, from which labels, gates and curves are made."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.graph.tensors import device_of
from compressor.routing.network import Routed
from compressor.routing.router import Gates, ImageRouter, sureness
from compressor.training import distributed
from compressor.training.evaluate import evaluating
from compressor.training.task import Task, called


@dataclass(frozen=True, eq=False)
class Observation:
    """All on the CPU; images in the set's order."""

    right: Tensor  # bool (images, depths)
    entropy: Tensor  # of the class probabilities in nats, (images, depths)
    suffices: Tensor  # the router's probability for each depth but the last, (images, depths - 1)
    seen: tuple[Tensor, ...]  # what each gate sees, (images, features); empty unless asked for

    def __len__(self) -> int:
        return len(self.right)


def observe(routed: Routed, part: Any, task: Task, *, keep_seen: bool = False, batch_size: int = 512) -> Observation:
    """Run every depth on every image of a part of the data; of several processes the first does, and all know."""
    return distributed.from_first(lambda: _observed(routed, part, task, keep_seen, batch_size))


def _observed(routed: Routed, part: Any, task: Task, keep_seen: bool, batch_size: int) -> Observation:
    rows: list[tuple[Tensor, ...]] = []
    seen: list[list[Tensor]] = []
    router = routed.router
    with evaluating(routed), torch.no_grad():
        for x, y in task.passing(part, batch_size, device_of(routed)):
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
    """The share of a part's examples that a network has right; of several processes the first looks."""

    def look() -> float:
        with evaluating(model), torch.no_grad():
            found = [task.correct(called(model, x), y) for x, y in task.passing(part, device=device_of(model))]
        return float(torch.cat(found).float().mean())

    return distributed.from_first(look)
