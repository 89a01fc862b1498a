"""Networks as strangers write them: what is free in each, and that surgery on it equals the masked original."""

# ruff: noqa: RUF012 - FREE and FROZEN are constants of each class
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.surgery import Insert, Plan, operate_
from tests.equivalence import half_plan, masked_outputs, outputs, randomise_, relative_error, same_map
from tests.networks import Network, conv


class Quarters(Network):
    """Four slices that follow the shape: only when cut unevenly do they show that they must stay equal."""

    FREE = {"a": 2, "b": 8}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        c = x.shape[1] // 4
        parts = [torch.roll(x[:, i * c : (i + 1) * c], i - 1, 2 + i % 2) for i in range(4)]
        return self.head(F.relu(self.b(torch.cat(parts, 1))).mean((2, 3)))


class QuartersBesideMore(Quarters):
    """The same with one more head in training: the two modes run different operators."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores + self.more(x.mean((2, 3))) if self.training else scores


class EvenAndOdd(Network):
    """Strided slices over channels."""

    FREE = {"a": 8, "b": 8}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(8, 8, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(torch.cat([x[:, 0::2], F.relu(self.b(x[:, 1::2]))], 1).mean((2, 3)))


class TemporalShift(Network):
    """A tensor of zeros filled slice by slice, with slices in eighths."""

    FREE = {"a": 2, "b": 8}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 8), nn.Linear(8, 2)

    def example(self) -> Tensor:
        return torch.randn(2, 3, 3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        x = self.a(x.flatten(0, 1))
        x = x.view(b, t, *x.shape[1:])
        f, out = x.shape[2] // 8, torch.zeros_like(x)
        out[:, :-1, :f], out[:, 1:, f : 2 * f] = x[:, 1:, :f], x[:, :-1, f : 2 * f]
        out[:, :, 2 * f :] = x[:, :, 2 * f :]
        return self.head(F.relu(self.b(out.flatten(0, 1))).mean((2, 3)).view(b, t, -1).mean(1))


class CosineHead(Network):
    """F.normalize: a length repeated over all channels."""

    FREE = {"a": 8}
    FROZEN = {"weight": "output"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight = conv(3, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(F.relu(self.a(x)).mean((2, 3))), F.normalize(self.weight)) * 30


class Spectral(Network):
    """Spectral normalisation, new and old: its vectors follow the weight."""

    FREE = {"a": 8, "b": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(conv(3, 8))
        self.b, self.head = nn.utils.spectral_norm(conv(8, 6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class OldWeightNorm(Network):
    """torch.nn.utils.weight_norm keeps the computed weight, which is no leaf, on the module."""

    FREE = {"a": 8, "b": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (nn.utils.weight_norm(m) for m in (conv(3, 8), conv(8, 6), nn.Linear(6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class FixedBlur(Network):
    """A depthwise kernel made from one, as often as there are channels."""

    FREE = {"a": 8, "b": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 2)
        self.register_buffer("kernel", torch.ones(1, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(F.conv2d(x, self.kernel.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1]))
        return self.head(F.conv2d(x, self.kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1]).mean((2, 3)))


class NonLocal(Network):
    """One attribute counts the channels of two kinds of maps, which stay equally many."""

    FREE = {"a": 16, "query": 8}

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.a, self.head = 8, conv(3, 16), nn.Linear(16, 3)
        self.query, self.key, self.value = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, _, h, w = x.shape
        query, key, value = (layer(x).view(b, self.inner, -1) for layer in (self.query, self.key, self.value))
        y = (query.transpose(1, 2) @ key / key.size(-1)) @ value.transpose(1, 2)
        return self.head((x + self.out(y.transpose(1, 2).reshape(b, self.inner, h, w))).mean((2, 3)))


class Gated(Network):
    """glu, topk and gather over pixels, complex numbers."""

    FREE = {"a": 8, "real": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.real, self.imaginary, self.head = conv(3, 16), conv(8, 6), conv(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.a(x), 1)
        x = torch.abs(torch.complex(self.real(x), self.imaginary(x))).flatten(2)
        largest, where = x.topk(4, -1)
        return self.head((largest + x.gather(2, where)).mean(2))


class CountUsed(Network):
    """What divides by a root of the number of channels would change with it: frozen."""

    FREE = {"b": 6}
    FROZEN = {"a": "computes with the number of channels"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.relu(self.b(x / x.shape[1] ** 0.5)).mean((2, 3)))


class CpuMask(Network):
    """A mask made on the CPU in training, dropout of whole maps, and a scripted layer."""

    FREE = {"a": 8, "b": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.b = conv(3, 8), nn.Dropout2d(0.3), conv(8, 6)
        self.act, self.head = torch.jit.script(nn.SiLU()), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.a(x))
        if self.training:
            x = x * (torch.rand(x.shape[0], 1, 1, 1) < 0.9)
        return self.head(self.act(self.b(x)).mean((2, 3)))


class _StandardisedByNorm(nn.Conv2d):
    """As in normaliser-free networks; over a single value there are no statistics, and torch refuses."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.conv2d(x, F.batch_norm(rows, None, None, training=True).reshape_as(self.weight), self.bias)


class StandardisedPointwise(Network):
    """So few inputs that a trial which leaves one of them would be refused; the edits that anyone makes are not."""

    FREE = {"first": 6, "second": 6, "a": 8, "b": 6}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.a = conv(3, 6), conv(6, 6), conv(6, 8)
        self.b, self.head = _StandardisedByNorm(8, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.second(F.relu(self.first(x))))))
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class FirstSoMany(Network):
    """As in GhostNet: the first so many channels of what is joined, which are all; of more, some would be left out."""

    FREE = {"a": 8, "c": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 8, groups=8), conv(16, 6), nn.Linear(6, 3)
        self.most = 16

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat([x, self.b(F.relu(x))], 1)[:, : self.most]
        return self.head(F.relu(self.c(x)).mean((2, 3)))


class Recurrent(Network):
    """Columns of maps read by recurrent layers, which look at all their sizes before they begin.

    Their first states are zeros that follow them.
    """

    FREE = {"a": 8, "b": 6, "c": 10, "gru": 5, "lstm": 5}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 6), conv(8, 10)
        self.gru, self.lstm = nn.GRU(6 * 8, 5), nn.LSTM(10, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        _, last = self.gru(F.adaptive_avg_pool2d(self.b(x), (8, 4)).permute(3, 0, 1, 2).flatten(2))
        sequence, _ = self.lstm(self.c(x).mean(2).transpose(1, 2))
        return self.head(torch.cat([last[0], sequence[:, -1]], 1))


class Detector(Network):
    """The idioms of one-stage detectors: pixels sliced into channels, a list of chunks that grows, pools side by side,
    a second scale brought up and joined, boxes read from distributions.
    """

    FREE = {"stem": 8, "cut": 6, "join": 12, "down": 8, "pools": 8, "top": 10}
    FROZEN = {"boxes": "softmax"}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cut, self.inner, self.join = conv(12, 8), conv(8, 12, 1), conv(6, 6), conv(18, 12, 1)
        self.down, self.pools, self.top = nn.Conv2d(12, 8, 3, 2, 1), conv(24, 8, 1), conv(20, 10)
        self.boxes, self.classes, self.bins = conv(10, 16, 1), conv(10, 3, 1), conv(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        parts = list(self.cut(F.silu(self.stem(x))).chunk(2, 1))
        parts.append(parts[-1] + self.inner(F.silu(parts[-1])))
        fine = F.silu(self.join(torch.cat(parts, 1)))
        pooled = [F.silu(self.down(fine))]
        for _ in range(2):
            pooled.append(F.max_pool2d(pooled[-1], 3, 1, 1))
        coarse = F.interpolate(self.pools(torch.cat(pooled, 1)), scale_factor=2.0)
        both = F.silu(self.top(torch.cat([coarse, fine], 1)))
        n = len(x)
        boxes, classes = torch.cat([self.boxes(both), self.classes(both)], 1).view(n, 19, -1).split((16, 3), 1)
        boxes = self.bins(boxes.view(n, 4, 4, -1).transpose(2, 1).softmax(1)).view(n, 4, -1)
        return torch.cat([boxes, classes.sigmoid()], 1)


UNUSUAL = (Quarters, QuartersBesideMore, EvenAndOdd, TemporalShift, CosineHead, Spectral, OldWeightNorm, FixedBlur,
           NonLocal, Gated, CountUsed, CpuMask, StandardisedPointwise, FirstSoMany, Recurrent, Detector)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(weight_norm|torch.jit).*")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_surgery_equals_the_masked_original(kind: type[Network]) -> None:
    torch.manual_seed(0)
    model = randomise_(kind())
    example = model.example().double()
    channels = capture(model, example)
    assert {group.name: group.size for group in channels.free} == kind.FREE
    assert not channels.notes
    for name, word in kind.FROZEN.items():
        assert word in channels.frozen[name]
    plan = half_plan(channels)
    before, reference = outputs(model, example), masked_outputs(model, example, channels, plan.removed)
    updated = operate_(model, plan, channels)
    assert relative_error(outputs(model, example), reference) < 1e-10
    assert relative_error(before, reference) > 1e-4
    assert same_map(updated, capture(model, example)) is None
    outputs(model.train(), example)


class FirstWidth(FirstSoMany):
    """The same by an attribute that is known to count channels, and follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16

    @property
    def most(self) -> int:
        return self.width

    @most.setter
    def most(self, value: int) -> None:
        pass


def test_channels_that_an_attribute_counts_grow_with_it() -> None:
    model = FirstWidth()
    example = model.example()
    channels = capture(model, example)
    assert {group.name: group.prune_only for group in channels.free} == {"a": None, "c": None}
    before = model(example)
    operate_(model, Plan((Insert("a", int(channels.group("a").ids[0]), "test"),)), channels)
    assert model.width == 18
    torch.testing.assert_close(model(example), before)


def test_channels_that_code_would_leave_out_do_not_grow() -> None:
    model = FirstSoMany()
    channels = capture(model, model.example())
    assert {group.name: group.prune_only is None for group in channels.free} == {"a": False, "c": True}
    assert "more channels" in channels.group("a").prune_only
    with pytest.raises(ModelError, match="can only be pruned"):
        operate_(model, Plan((Insert("a", int(channels.group("a").ids[0]), "test"),)), channels)
