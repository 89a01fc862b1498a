"""Which scale stays for inference: the one whose local classifier does best on data it has not learnt from."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.graph.tensors import device_of
from compressor.primenet.network import PrimeNetwork
from compressor.training.evaluate import evaluating
from compressor.training.task import Task


def local_losses(network: PrimeNetwork, part: Any, task: Task, batch_size: int = 512) -> dict[int, float]:
    """Mean cross-entropy, in nats, of each scale's local classifier over a part of the data, in eval mode."""
    count = 0
    block, device = network.stage.block, device_of(network)
    sums = {scale: torch.zeros((), dtype=torch.float64, device=device) for scale in block.scales}
    with evaluating(network), torch.no_grad():
        for x, y in task.passing(part, batch_size, device):
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
