"""Tiny networks, one for each way in which channels can be tied; each states its own free groups beside its layers.

`FREE` maps the name of a free group to its number of channels; what a network ties into a frozen group is in `FROZEN`
with a word of the reason. The input is `(2, channels, 8, 8)` unless `example` says otherwise.
"""

# ruff: noqa: RUF012 - FREE and FROZEN are constants of each class
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """What the tests ask of every network here; `exact` is False where pruning changes statistics over channels."""

    FREE: dict[str, int] = {}
    FROZEN: dict[str, str] = {}

    def example(self) -> Any:
        return torch.randn(2, 3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


class Plain(Network):
    """Convolution, batch norm, pooling, flatten with H * W > 1, two linear layers."""

    FREE = {"a": 6, "b": 8, "c": 10}
    FROZEN = {"d": "output"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(3, 6), nn.BatchNorm2d(6), conv(6, 8, bias=False)
        self.c, self.d = nn.Linear(8 * 16, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.a(x))), 2)
        return self.d(F.relu(self.c(F.relu(self.b(x)).flatten(1))))


class Residual(Network):
    """Two blocks around one stream: stem and both last convolutions make the same channels."""

    FREE = {"stem": 6, "a1": 5, "b1": 4}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 6), nn.Linear(6, 4)
        self.a1, self.an, self.a2 = conv(6, 5), nn.BatchNorm2d(5), conv(5, 6)
        self.b1, self.bn, self.b2 = conv(6, 4), nn.BatchNorm2d(4), conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a2(F.relu(self.an(self.a1(x)))))
        x = x + self.b2(F.relu(self.bn(self.b1(x))))
        return self.head(x.mean((2, 3)))


class Dense(Network):
    """Concatenation of everything so far, as in DenseNet, with batch norm over the whole."""

    FREE = {"a": 4, "b": 3, "c": 5}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 3), conv(7, 5)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat([x, self.b(F.relu(x))], 1)
        x = torch.cat([x, self.c(F.relu(x))], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Depthwise(Network):
    """Depthwise with a multiplier of 2 between two pointwise convolutions, and squeeze-and-excitation."""

    FREE = {"expand": 6, "squeeze": 3}

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.deep = conv(3, 6, 1), conv(6, 12, 3, groups=6)
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.norm, self.project = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.deep(F.relu6(self.expand(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.project(x * gate).mean((2, 3))


class Grouped(Network):
    """A convolution with 3 groups: the same position of every group is one channel."""

    FREE = {"a": 4, "b": 2}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(12, 6, groups=3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class StoredGroups(Network):
    """A blur whose `groups` is an integer that the module keeps, and calls a function with."""

    FREE = {"a": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.blur, self.head = conv(3, 6), _Blur(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blur(F.relu(self.a(x))).mean((2, 3)))


class _Blur(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", torch.ones(channels, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, groups=self.channels)


class CheckedSize(Network):
    """A block that asks of its input for as many channels as it keeps, and gives as many others."""

    FREE = {"a": 6, "block.conv": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.block, self.head = conv(3, 6), _Checked(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(F.relu(self.a(x))).mean((2, 3)))


class _Checked(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.conv = channels, conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return F.relu(self.conv(x))


class WrittenSize(Network):
    """A shape written into the code: the channels that meet there are frozen, the rest is pruned."""

    FREE = {"a": 6}
    FROZEN = {"b": "written into the code"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(x.view(x.shape[0], 5, 64).mean(2))


class SilentSize(Network):
    """A slice that would not fail but take other channels once some before it are gone."""

    FREE = {"head": 7}
    FROZEN = {"a": "written into the code"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.last = conv(3, 8), nn.Linear(4, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.head(F.relu(self.a(x))[:, 2:6].mean((2, 3)))))


class Shuffled(Network):
    """Channel shuffle by view, transpose, view."""

    FREE = {"a": 4, "b": 5}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class Chunked(Network):
    """chunk, slices that follow the shape, and unequal parts whose sizes the module keeps."""

    FREE = {"a": 4, "b": 4, "b#2": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(4, 10), conv(10, 3)
        self.parts = [4, 6]

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.a(x).chunk(2, 1)
        left, right = torch.split(self.b(F.relu(one) * two), self.parts, 1)
        return self.c(torch.cat([F.relu(right), left], 1)).mean((2, 3))


class Selective(Network):
    """Selective kernels: two branches stacked, weighed by a softmax over the branches."""

    FREE = {"a": 6, "squeeze": 3}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), conv(3, 6, 5)
        self.squeeze, self.excite, self.head = nn.Linear(6, 3), nn.Linear(3, 12), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        weights = self.excite(F.relu(self.squeeze(both.sum(1).mean((2, 3)))))
        weights = weights.view(x.shape[0], 2, -1).softmax(1)[..., None, None]
        return self.head((both * weights).sum(1).mean((2, 3)))


class Transposed(Network):
    """An hourglass with transposed convolutions, dense and depthwise, and a skip by concatenation (U-Net)."""

    FREE = {"down": 6, "up": 5, "inner": 4}

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = conv(3, 6, stride=2), conv(6, 4, stride=2)
        self.up = nn.ConvTranspose2d(4, 5, 2, 2)
        self.wide = nn.ConvTranspose2d(11, 11, 2, 2, groups=11)
        self.out = conv(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        down = F.relu(self.down(x))
        up = F.relu(self.up(F.relu(self.inner(down))))
        return self.out(self.wide(torch.cat([down, up], 1)))


class OtherRanks(Network):
    """1-d and 3-d convolutions in one network."""

    FREE = {"line.0": 5, "space.0": 4}

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 4, 3, dilation=2))
        self.space = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 4, 2))

    def example(self) -> Any:
        return {"line": torch.randn(2, 3, 12), "space": torch.randn(2, 1, 6, 6, 6)}

    def forward(self, line: Tensor, space: Tensor) -> dict[str, Tensor]:
        return {"line": self.line(line), "space": self.space(space).mean((2, 3, 4))}


class Shared(Network):
    """One module called twice, tied weights, and a bare parameter that scales channels."""

    FREE = {"stem": 6, "tied": 5}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = conv(3, 6), conv(6, 6)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.tied, self.again, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 4)
        self.again.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(F.relu(self.twice(F.relu(self.stem(x))))) * self.scale
        x = x.mean((2, 3))
        return self.head(F.relu(self.tied(x)) + F.relu(self.again(x)))


class Computed(Network):
    """Weights computed from parameters: standardised over inputs, and by weight normalisation."""

    FREE = {"a": 6, "b": 5}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = _Standardised(3, 6, 3, padding=1), nn.Linear(5, 4)
        self.b = nn.utils.parametrizations.weight_norm(conv(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class _Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, padding=1)


class Normalised(Network):
    """GroupNorm, LayerNorm on the last dimension and channels first, InstanceNorm, PReLU per channel."""

    FREE = {"a": 4, "b": 6, "c": 5}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group, self.prelu = conv(3, 8), nn.GroupNorm(2, 8), nn.PReLU(8)
        self.b, self.instance, self.first = conv(8, 6), nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(1, 6)
        self.c, self.layer, self.head = conv(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.group(self.a(x)))
        x = F.relu(self.first(self.instance(self.b(x))))
        return self.head(self.layer(self.c(x).permute(0, 2, 3, 1)).mean((1, 2)))


class Attention(Network):
    """Self-attention whose heads are a size in the code: the heads stay, the stream and the hidden layer are free."""

    FREE = {"patch": 8, "up": 9}

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.position = nn.Parameter(torch.randn(1, 4, 8))
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 4, 8)
        x = x + self.project(y)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class Auxiliary(Network):
    """Two inputs, a tuple of outputs, and a head that only the training graph has."""

    FREE = {"a": 6, "b": 5, "auxiliary.0": 3}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(2, 5), nn.Linear(11, 4)
        self.auxiliary = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))

    def example(self) -> Any:
        return torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x, y = F.relu(self.a(x)), F.relu(self.b(y))
        main = self.head(torch.cat([x, y], 1).mean((2, 3)))
        return (main, self.auxiliary(x)) if self.training else (main,)


class PixelShuffled(Network):
    """Sub-pixel upsampling: four channels become one."""

    FREE = {"a": 5, "b": 3}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 5), conv(5, 12), conv(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(F.pixel_shuffle(self.b(F.relu(self.a(x))), 2)))


class ZeroPadded(Network):
    """The parameter-free shortcut of CIFAR ResNets: strided, with channels of zeros on both sides."""

    FREE = {"stem": 4, "a": 5}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 4), conv(4, 5, stride=2), conv(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.relu(shortcut + self.b(F.relu(self.a(x)))).mean((2, 3)))


class Unknown(Network):
    """An operator without a rule that mixes channels freezes what it touches and nothing else."""

    FREE = {"a": 6}
    FROZEN = {"b": "no rule"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.renorm(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)), 2, 0, 1.0))


NETWORKS: dict[str, Callable[[], Network]] = {
    cls.__name__: cls
    for cls in (
        Plain, Residual, Dense, Depthwise, Grouped, StoredGroups, CheckedSize, WrittenSize, SilentSize, Shuffled,
        Chunked, Selective, Transposed, OtherRanks, Shared, Computed, Normalised, Attention, Auxiliary, PixelShuffled,
        ZeroPadded, Unknown,
    )
}  # fmt: skip
