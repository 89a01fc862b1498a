"""What an image goes through in place of a unit that it skips, always of the unit's output shape.

Our reading of a point the paper leaves open (its layers have one height and width but different numbers of maps, and
one dense layer): a residual block leaves its own shortcut path; elsewhere the way around has no parameters, or, if
asked for, a learned 1x1 convolution.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from compressor.graph.shortcuts import is_layer, own_shortcut


class Shortcut(nn.Module):
    """Maps (batch, channels, height, width) brought to another shape without parameters.

    Larger maps are averaged over windows as wide as the stride; missing channels are zero, superfluous ones are
    averaged with their neighbours.
    """

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        if self.before == self.after:
            return x
        return _channels(_pooled(x, self.before[1:], self.after[1:]), self.after[0])


class Adapter(nn.Module):
    """The same with a learned 1x1 convolution for the channels."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.conv = nn.Conv2d(before[0], after[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(_pooled(x, self.before[1:], self.after[1:]))
        return y


class ExitHead(nn.Module):
    """A small classifier for maps on which the network's own head was not trained: means over a grid, then linear."""

    def __init__(self, shape: tuple[int, ...], classes: int, side: int) -> None:
        super().__init__()
        self.stride, means = _grid(shape, side)
        self.linear = nn.Linear(shape[0] * math.prod(means), classes)

    def forward(self, maps: Tensor) -> Tensor:
        pool: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(self.stride) - 1]
        y: Tensor = self.linear(pool(maps, self.stride).flatten(1))
        return y


def head_side(shape: tuple[int, ...], classes: int, most: int) -> int:
    """The finest grid, of about 16x16 to 1x1 means, with which an exit head takes at most so many MACs."""
    for side in (16, 8, 4, 2):
        if shape[0] * math.prod(_grid(shape, side)[1]) * classes <= most:
            return side
    return 1


def _grid(shape: tuple[int, ...], side: int) -> tuple[list[int], list[int]]:
    strides = [max(1, round(size / side)) for size in shape[1:]]
    return strides, [size // stride for size, stride in zip(shape[1:], strides)]


class Skippable(nn.Module):
    """A unit of the network and the way around it."""

    def __init__(self, body: fx.GraphModule, before: tuple[int, ...], after: tuple[int, ...], adapter: bool) -> None:
        super().__init__()
        self.body = body
        self._own = own_shortcut(body)
        self.around: nn.Module | None = None
        if self._own is None:
            learned = adapter and before != after
            self.around = Adapter(before, after) if learned else Shortcut(before, after)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    def skip(self, x: Tensor) -> Tensor:
        """What takes the place of the unit's output."""
        if self.around is not None:
            y: Tensor = self.around(x)
        else:
            # The block's other path runs on the same module, so its weights and statistics are held once.
            y = fx.Interpreter(self.body, graph=self._own).run(x)
        return y


def shortcut_fits(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a parameter-free shortcut exists: the shape stays, or maps become no larger."""
    if tuple(before) == tuple(after):
        return True
    return len(before) == len(after) == 3 and all(old >= new for old, new in zip(before[1:], after[1:]))


def shortcut_text(body: fx.GraphModule, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """For the list of units: what an image that skips this one goes through."""
    own = own_shortcut(body)
    if own is not None:
        return "its own shortcut path" if any(is_layer(node) for node in own.nodes) else "identity"
    parts = []
    if before[1:] != after[1:]:
        parts.append("average pooling")
    if before[0] < after[0]:
        parts.append(f"{after[0] - before[0]} zero channels")
    elif before[0] > after[0]:
        parts.append("mean of neighbouring channels")
    return ", ".join(parts) or "identity"


def _pooled(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Maps of size `before` averaged to size `after`: over the layer's stride where that fits, else adaptively."""
    if tuple(before) == tuple(after):
        return x
    strides = [max(1, round(old / new)) for old, new in zip(before, after)]
    if all(old // stride == new for old, new, stride in zip(before, after, strides)):
        return functional.avg_pool2d(x, strides)
    if all(-(-old // stride) == new for old, new, stride in zip(before, after, strides)):
        return functional.avg_pool2d(x, strides, ceil_mode=True)
    return functional.adaptive_avg_pool2d(x, (after[0], after[1]))


def _channels(x: Tensor, wanted: int) -> Tensor:
    missing = wanted - x.shape[1]
    if missing >= 0:
        return functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    flat = functional.adaptive_avg_pool1d(x.flatten(2).transpose(1, 2), wanted)
    maps: Tensor = flat.transpose(1, 2).unflatten(2, x.shape[2:])
    return maps
