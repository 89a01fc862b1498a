"""What layers count and tie, beside what tests of whole networks see."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.graph import capture
from compressor.graph.propagate import Propagation
from compressor.graph.trace import trace
from compressor.graph.unions import Unions, roots_of
from compressor.surgery import operate_
from tests.equivalence import half_plan, masked_outputs, outputs, relative_error


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 4), (3, 8)])
def test_a_transposed_convolution_scatters_every_position_of_its_input(stride: int, groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 16, 3, stride, groups=groups), nn.Conv2d(16, 2, 1))
    channels = capture(model, torch.randn(1, 3, 5, 7))
    grown = ((5 - 1) * stride + 3) * ((7 - 1) * stride + 3)
    assert channels.macs() == 5 * 7 * (3 * 8 + 8 * 16 * 9 // groups) + grown * 16 * 2


class Causal(nn.Module):
    """Attention of tokens to those before them, with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.4)
        scores: Tensor = self.head(seen[:, 0])
        return scores


def test_attention_ties_queries_to_keys_and_hands_values_on() -> None:
    model, x = Causal().double(), torch.randn(2, 4, 5).double()
    channels = capture(model, x)
    assert {group.name: group.size for group in channels.free} == {"q": 6, "v": 8}
    plan = half_plan(channels)
    expected = masked_outputs(model, x, channels, plan.removed)
    operate_(model, plan, channels)
    assert relative_error(outputs(model, x), expected) < 1e-12
    assert (model.q.out_features, model.k.out_features, model.v.out_features) == (3, 3, 4)


class Fused(Causal):
    """The same by the operator that torch takes on a CPU where all three have one width."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        scores: Tensor = self.head(attend(q, k, v, 0.0, True, scale=0.4)[0][:, 0])
        return scores


def test_attention_in_one_operator_ties_the_same() -> None:
    ties = Unions()
    walk = Propagation(trace(Fused(), torch.randn(2, 4, 5)), ties)
    walk.follow()
    roots, blocks = roots_of(ties), ties.blocks
    q, k, v, read = (roots[blocks[key]].tolist() for key in (
        ("q.weight", 0), ("k.weight", 0), ("v.weight", 0), ("head.weight", 1)))  # fmt: skip
    assert q == k and v == read and not {*q} & {*v}
    [attended] = [at for at, op in enumerate(walk.trace.ops) if op.operator.kind == "attention"]
    assert [sorted(track) for track in walk.op_outputs[attended]] == [[3], []]  # the result, and sums of the scores
    assert not {*q, *v} & {int(root) for ids, _ in ties.frozen for root in roots[ids].ravel()}


class Bags(nn.Module):
    """Rows of a table, many to a feature, beside a plain table of as many."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.table = nn.EmbeddingBag(10, 8, mode=mode), nn.Embedding(10, 8)
        self.weights = torch.rand(3, 4).double() if mode == "sum" else None
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.hidden(self.bag(x, per_sample_weights=self.weights) + self.table(x[:, 0])))
        return scores


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_what_is_added_up_of_a_tables_rows_has_its_columns(mode: str) -> None:
    model, x = Bags(mode).double(), torch.randint(10, (3, 4))
    channels = capture(model, x)
    assert {group.name: group.size for group in channels.free} == {"bag#2": 8, "hidden": 6}
    plan = half_plan(channels)
    expected = masked_outputs(model, x, channels, plan.removed)
    operate_(model, plan, channels)
    assert relative_error(outputs(model, x), expected) < 1e-12
    assert model.bag.embedding_dim == model.table.embedding_dim == model.hidden.in_features == 4
