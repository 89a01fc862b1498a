"""Routers: what tells after which unit an image may leave the network, as the probability that this depth suffices."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.report import units

SMALLEST_IMAGE = 4  # pixels; two convolutions of stride 2 see no less
_SIDE = 16  # pixels that the image router looks at


class ImageRouter(nn.Module):
    """A small network that looks at the image before anything else runs, and names a depth.

    Reference: CNN 2 of the paper, whose layers it does not give; ours takes about 0.03 million MACs. With `argmax` the
    depth is the most probable label, as in the paper; otherwise the first depth up to which the labels are probable
    enough together.
    """

    def __init__(self, input_shape: tuple[int, ...], depths: int, *, argmax: bool) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST_IMAGE:
            size = units.shape(input_shape)
            raise ModelError(
                f"the image router needs images of {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels or more, the network "
                f"takes {size}: choose `router` gates"
            )
        self.argmax = argmax
        self.stride = [math.ceil(side / _SIDE) for side in input_shape[1:]]
        self.conv1 = nn.Conv2d(input_shape[0], 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.linear = nn.Linear(16, depths)

    def forward(self, x: Tensor) -> Tensor:
        """Images to unnormalised log-probabilities of the labels, (batch, depths)."""
        small = functional.avg_pool2d(x, self.stride)
        maps = self.conv2(self.conv1(small).relu()).relu()
        y: Tensor = self.linear(maps.mean((2, 3)))
        return y

    def suffices(self, x: Tensor) -> Tensor:
        """Probability for each depth but the last that it suffices, (batch, depths - 1); -1 where it is ruled out."""
        probabilities: Tensor = self(x).softmax(1)
        if not self.argmax:
            return probabilities.cumsum(1)[:, :-1]
        highest, label = probabilities.max(1, keepdim=True)
        depth = torch.arange(probabilities.shape[1] - 1, device=x.device)
        return torch.where(label <= depth, highest, highest.new_full((), -1.0))


class Gate(nn.Module):
    """After one unit: whether the scores that the network would give now can stay.

    Sees the maps' means, the class probabilities and how sure they are; what is right about a confidence threshold
    (BranchyNet's rule) is among what it can learn.
    """

    def __init__(self, features: int, hidden: int = 16) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, 1)

    def forward(self, seen: Tensor) -> Tensor:
        """From (batch, features) to the logarithm of the odds that leaving is as good as going on, (batch,)."""
        y: Tensor = self.output(self.hidden(self.norm(seen)).relu())
        return y.squeeze(1)


class Gates(nn.Module):
    """One gate behind every depth but the last; each image meets them in turn until one lets it leave."""

    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        self.features = [each + classes + _SURENESS for each in channels]
        self.gates = nn.ModuleList(Gate(each) for each in self.features)

    def see(self, maps: Tensor, scores: Tensor) -> Tensor:
        """What a gate looks at, (batch, channels + classes + 3)."""
        means = maps.mean(tuple(range(2, maps.dim())))
        # Under autocast both are bfloat16.
        probabilities, sure = sureness(scores.float())
        return torch.cat([means.float(), probabilities, sure], 1)

    def forward(self, depth: int, seen: Tensor) -> Tensor:
        """See `Gate.forward`."""
        y: Tensor = self.gates[depth](seen)
        return y

    def suffices(self, depth: int, maps: Tensor, scores: Tensor) -> Tensor:
        """Probability that this depth suffices, (batch,)."""
        odds: Tensor = self(depth, self.see(maps, scores))
        return odds.sigmoid()


Router = ImageRouter | Gates
_SURENESS = 3


def sureness(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The class probabilities; and their two largest and negative entropy in nats, (batch, 3).

    A single score is that of one of two classes, the other one's being zero.
    """
    count = scores.shape[1]
    logarithms = (scores if count > 1 else functional.pad(scores, (0, 1))).log_softmax(1)
    probabilities = logarithms.exp()
    largest, place = probabilities.max(1, keepdim=True)
    # Not `topk`, which is a sort to LiteRT's converter, and to its runtime an operator that it lacks.
    classes = torch.arange(probabilities.shape[1], device=scores.device)
    second = torch.where(classes == place, -1.0, probabilities).amax(1, keepdim=True)
    negative_entropy = (probabilities * logarithms).sum(1, keepdim=True)
    return probabilities[:, :count], torch.cat([largest, second, negative_entropy], 1)
