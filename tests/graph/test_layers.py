"""Operators with weights: what they tie, cost and count, each in a network of its own against the masked original."""

# ruff: noqa: RUF012 - FREE and FROZEN are constants of each class
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.graph import capture
from compressor.graph.propagate import Propagation
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Way, run, trace
from compressor.graph.unions import Unions, roots_of
from compressor.profiling.costs import count_macs
from compressor.surgery import operate_
from tests.equivalence import half_plan, masked_outputs, outputs, randomise_, relative_error, same_map
from tests.networks import Network, conv


class GroupedUp(Network):
    """A transposed convolution in three groups: inputs are tied across groups, outputs too."""

    FREE = {"a": 4, "up": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.head = conv(3, 12), nn.ConvTranspose2d(12, 12, 3, 2, groups=3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.a(x)))).mean((2, 3)))


class DepthwiseUp(Network):
    """A depthwise transposed convolution with two outputs for each input; these stay two."""

    FREE = {"a": 6}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.head = conv(3, 6), nn.ConvTranspose2d(6, 12, 2, 2, groups=6), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.a(x)))).mean((2, 3)))


class Up(Network):
    """Transposed convolutions whose output is larger and smaller than their input, with and without bias."""

    FREE = {"a": 6, "up": 5, "same": 7, "less": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = conv(3, 6), nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1)
        self.same, self.less = (
            nn.ConvTranspose2d(5, 7, 3, padding=1, bias=False),
            nn.ConvTranspose2d(7, 4, 1, padding=2),
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.same(F.relu(self.up(F.relu(self.a(x))))))
        return self.head(F.relu(self.less(x)).mean((2, 3)))


class Products(Network):
    """Matrix products with bare parameters: of one matrix, one for each image of the batch, with and without bias."""

    FREE = {"a": 6, "m": 5, "n": 7}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.n = conv(3, 6), nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(7, 5))
        self.bias, self.o = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).mean((2, 3)) @ self.m
        x = F.relu(torch.addmm(self.bias, F.relu(x), self.n.t()))
        return torch.bmm(x[:, None], self.o.expand(x.shape[0], -1, -1))[:, 0]


class WithVector(Network):
    """The last product is with a vector."""

    FREE = {"a": 6, "b": 5}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.v = conv(3, 6), nn.Linear(6, 5), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x)).mean((2, 3)))) @ self.v


class PerPixel(Network):
    """Linear layers on maps with channels last, one of them without bias."""

    FREE = {"a": 6, "b": 5, "c": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), nn.Linear(6, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.relu(self.b(F.relu(self.a(x)).permute(0, 2, 3, 1))))
        return self.head(F.relu(x).mean((1, 2)))


class Words(Network):
    """An embedding: its entries stay, its features are channels."""

    FREE = {"words#2": 6, "b": 5}

    def __init__(self) -> None:
        super().__init__()
        self.words, self.b, self.head = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def example(self) -> Tensor:
        return torch.randint(9, (2, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.words(x))).mean(1))


class TwoInputs(Network):
    """A bilinear layer, which reads two feature maps: one row of its operator's table, without a rule of its own."""

    FREE = {"a": 6, "b": 5, "join": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.join, self.head = conv(3, 6), conv(3, 5), nn.Bilinear(6, 5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (F.relu(layer(x)).mean((2, 3)) for layer in (self.a, self.b))
        return self.head(F.relu(self.join(left, right)))


class ScaledAttention(Network):
    """One head, with a scale that does not follow the number of features: queries and keys can be pruned together."""

    FREE = {"a": 6, "q": 4, "v": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 6), nn.Linear(4, 3)
        self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))
        self.scale: float | None = 0.7

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        return self.head(F.scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1).mean(1))


LAYERED = (GroupedUp, DepthwiseUp, Up, Products, WithVector, PerPixel, Words, TwoInputs, ScaledAttention)


@pytest.mark.parametrize("kind", LAYERED)
def test_layers_are_pruned_as_the_masked_original(kind: type[Network]) -> None:
    torch.manual_seed(0)
    model = randomise_(kind())
    example = model.example()
    example = example.double() if example.is_floating_point() else example
    channels = capture(model, example)
    assert {group.name: group.size for group in channels.free} == kind.FREE
    assert channels.macs() * 2 == count_macs(trace(model, example)).total
    plan = half_plan(channels)
    before, reference = outputs(model, example), masked_outputs(model, example, channels, plan.removed)
    updated = operate_(model, plan, channels)
    assert relative_error(outputs(model, example), reference) < 1e-10 < 1e-4 < relative_error(before, reference)
    assert same_map(updated, capture(model, example)) is None
    assert updated.macs() * 2 == channels.macs(plan.removed) * 2 == count_macs(trace(model, example)).total


@pytest.mark.parametrize("real", [False, True], ids=["shapes", "data"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_that_divides_by_the_root_of_its_features_keeps_them(scale: float | None, real: bool) -> None:
    """On shapes alone torch takes attention apart; on data it is one operator."""
    model = ScaledAttention()
    model.scale = scale
    x = model.example() if real else model.example().to("meta")
    walk = Propagation(run(Replica(model, real=real), Way(x)), Unions())
    walk.follow()
    assert any("attention" in op.name for op in walk.trace.ops) == real
    roots = roots_of(walk.ties)
    frozen = {identity: reason for ids, reason in walk.ties.frozen for identity in roots[ids].tolist()}
    features = [roots[walk.ties.blocks[f"{name}.weight", 0]].tolist() for name in ("q", "k")]
    assert features[0] == features[1]
    if real:
        assert [i in frozen for i in features[0]] == [scale is None] * 4
        assert scale is not None or "attention divides by the root of their number" in frozen[features[0][0]]
    assert not frozen.keys() & set(roots[walk.ties.blocks["v.weight", 0]].tolist())
    pruned_only = {identity for ids, _ in walk.ties.prune_only for identity in roots[ids].tolist()}
    assert set(features[0]) <= pruned_only


def test_queries_that_are_divided_by_the_root_of_their_number_are_frozen() -> None:
    model = ScaledAttention()
    model.scale = None
    channels = capture(model, model.example())
    assert "q" in channels.frozen and {group.name for group in channels.free} == {"a", "v"}


def test_a_depthwise_layer_counts_its_groups() -> None:
    model = DepthwiseUp()
    channels = capture(model, model.example())
    operate_(model, half_plan(channels), channels)
    assert model.up.groups == model.up.in_channels == 3 and model.up.out_channels == 6


def test_a_bilinear_layer_counts_both_inputs() -> None:
    model = TwoInputs()
    channels = capture(model, model.example())
    operate_(model, half_plan(channels), channels)
    assert (model.join.in1_features, model.join.in2_features) == model.join.weight.shape[1:] == (3, 3)
    assert model.join.out_features == len(model.join.weight) == 2


def test_a_layer_in_groups_keeps_their_number() -> None:
    model = GroupedUp()
    channels = capture(model, model.example())
    operate_(model, half_plan(channels), channels)
    assert (model.up.groups, model.up.in_channels, model.up.out_channels) == (3, 6, 6)
