"""The early stage, parallel capsules with local classifiers and a projection, and the network behind it."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError, UsageError
from compressor.primenet.settings import SCALES, PrimeNetSettings
from compressor.report import units

Size = tuple[int, int]


def pooling(size: Size, target: Size) -> tuple[Size, Size]:
    """Kernel and stride of a pooling without padding that makes `target` of `size`, both (height, width).

    For each side n -> m the stride is floor(n / m) and the kernel what is then left over: n - (m - 1) * stride.
    """
    stride = strides(size, target)
    height, width = (n - (m - 1) * s for n, m, s in zip(size, target, stride))
    return (height, width), stride


def strides(size: Size, target: Size) -> Size:
    """The largest strides with which maps of `size` do not become smaller than `target`."""
    return size[0] // target[0], size[1] // target[1]


def strided(size: Size, stride: Size) -> Size:
    """Height and width that a convolution with odd kernel, equal padding and this stride leaves."""
    return -(-size[0] // stride[0]), -(-size[1] // stride[1])


SLOPE = 0.3  # of LeakyReLU below zero; with the next three, the defaults of Keras that the authors' code relies on
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01
CONVOLUTION_BIAS = 0.2  # at the start
LARGEST_HEAD = 5_000_000  # weights of a local classifier; above, it reads maps that are averaged down first
HEAD_SIDE = 8  # to this height and width


class Capsule(nn.Module):
    """1x1 reduction -> convolution of one scale -> batch norm -> LeakyReLU.

    (batch, in_channels, height, width) -> (batch, filters, ceil(height / stride), ceil(width / stride)).
    Reference: section 3.2, Figure 1; no activation follows the reduction.
    """

    def __init__(self, in_channels: int, filters: int, scale: int, *, reduced: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, reduced, 1)
        self.conv = nn.Conv2d(reduced, filters, scale, stride, padding=scale // 2)
        self.norm = nn.BatchNorm2d(filters, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)
        for layer in (self.reduce, self.conv):
            start_(layer, CONVOLUTION_BIAS)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.act(self.norm(self.conv(self.reduce(x))))
        return maps


class PrimeBlock(nn.Module):
    """Capsules of several scales over the same images, of which one is handed on.

    While it is `learning`, each capsule is trained by its own local loss (see `LocalLearning`) and the output is cut
    off from the graph. Once settled it is an ordinary part of a network: one capsule without classifiers, or all of
    them, with the one whose classifier is surest chosen for each image.

    Differs from the paper where it is silent: without labels no loss can choose, so inference is by either of these.
    """

    def __init__(self, capsules: Mapping[int, nn.Module], heads: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.capsules = nn.ModuleDict({str(scale): capsule for scale, capsule in capsules.items()})
        self.heads = nn.ModuleDict({str(scale): head for scale, head in heads.items()})
        self.learning = True

    @property
    def scales(self) -> tuple[int, ...]:
        """Kernel sizes of the capsules that are there."""
        return tuple(int(name) for name in self.capsules)

    def forward(self, x: Tensor) -> Tensor:
        maps = [capsule(x) for capsule in self.capsules.values()]
        chosen = maps[0] if len(maps) == 1 else self._surest(maps)
        return chosen.detach() if self.learning else chosen

    def _surest(self, maps: list[Tensor]) -> Tensor:
        """For each image the maps whose local classifier has the smallest entropy; the smaller scale where equal."""
        best, lowest = maps[0], entropy(self.heads[str(self.scales[0])](maps[0]))
        for name, each in zip(list(self.heads)[1:], maps[1:]):
            value = entropy(self.heads[name](each))
            best = torch.where((value < lowest)[:, None, None, None], each, best)
            lowest = torch.minimum(value, lowest)
        return best

    def settle_(self, scales: Iterable[int]) -> None:
        """End the learning in place: keep these scales; where it is a single one, no local classifier stays."""
        kept = [str(scale) for scale in scales]
        self.capsules = nn.ModuleDict({name: self.capsules[name] for name in kept})
        self.heads = nn.ModuleDict({name: self.heads[name] for name in kept} if len(kept) > 1 else {})
        self.learning = False


def entropy(scores: Tensor) -> Tensor:
    """Of the softmax of logits (batch, classes), in nats, one for each image."""
    logs = scores.float().log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def local_head(filters: int, size: tuple[int, int], classes: int) -> nn.Sequential:
    """A local classifier: maps (batch, filters, *size) -> logits (batch, classes).

    Reference: section 4.1 (flatten, dense). Maps so large that the dense layer would outweigh the network are averaged
    to 8x8 first.
    """
    layers: list[nn.Module] = []
    if filters * size[0] * size[1] * classes > LARGEST_HEAD:
        side = (min(size[0], HEAD_SIDE), min(size[1], HEAD_SIDE))
        layers.append(nn.AvgPool2d(*pooling(size, side)))
        size = side
    dense = nn.Linear(filters * size[0] * size[1], classes)
    start_(dense, 0.0)
    return nn.Sequential(*layers, nn.Flatten(), dense)


def start_(layer: nn.Conv2d | nn.Linear, bias: float) -> None:
    """Keras's initial values: Glorot-uniform weights, one value for every bias."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)


class PrimeStage(nn.Module):
    """Concatenation of the block's maps and a projection of the images, max-pooled where it has to be smaller.

    (batch, in_channels, height, width) -> (batch, filters + projected, height', width').
    Reference: section 3.3, equation 5; section 4.1 for the projection: max-pool -> convolution -> ReLU. It belongs to
    the classifier and learns from the network's loss (section 3.5).
    """

    def __init__(self, block: PrimeBlock, projection: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.projection = projection
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.block(x), x)

    def join(self, maps: Tensor, x: Tensor) -> Tensor:
        """The stage's output, given what the block handed on for the images `x`."""
        joined: Tensor = self.pool(torch.cat([maps, self.projection(x)], 1))
        return joined


def build_stage(
    image: tuple[int, ...],
    classes: int,
    settings: PrimeNetSettings,
    *,
    filters: int = 64,
    projected: int = 64,
    size: Size | None = None,
) -> PrimeStage:
    """A stage that has not learnt yet, for images of shape `image`, (channels, height, width).

    Its output has `filters` + `projected` channels and maps of `size`, or of the images' own size where that is left
    out. Raises UsageError for scales that a capsule cannot have, ModelError for sizes that cannot be reached.
    """
    scales = tuple(sorted(settings.scales))
    if not scales or len(set(scales)) < len(scales) or not set(scales) <= set(SCALES):
        given = ",".join(map(str, settings.scales))
        raise UsageError(f"`scales` {given}: give one or more different ones of {', '.join(map(str, SCALES))}")
    if settings.fit not in ("pool", "stride"):
        raise UsageError(f"`fit` {settings.fit}: give pool or stride")
    channels, whole = image[0], (image[1], image[2])
    size = size or whole
    if size[0] > whole[0] or size[1] > whole[1] or min(filters, projected) < 1:
        wanted, given = map(units.shape, ((filters + projected, *size), image))
        raise ModelError(f"the block cannot make {wanted} of images of {given}: choose another stage")
    stride = strides(whole, size) if settings.fit == "stride" else (1, 1)
    left = strided(whole, stride)
    capsules = {k: Capsule(channels, filters, k, reduced=settings.reduced, stride=stride) for k in scales}
    heads = {k: local_head(filters, left, classes) for k in scales}
    pool = nn.Identity() if left == size else nn.MaxPool2d(*pooling(left, size))
    return PrimeStage(PrimeBlock(capsules, heads), _projection(channels, projected, stride), pool)


def _projection(channels: int, projected: int, stride: Size) -> nn.Sequential:
    convolution = nn.Conv2d(channels, projected, 1)
    start_(convolution, 0.0)
    return nn.Sequential(nn.MaxPool2d(3, stride, padding=1), convolution, nn.ReLU())


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
