"""Labels against loops, on made-up activations and outcomes."""

import pytest
import torch

from compressor.errors import DataError
from compressor.routing import observing
from compressor.routing.observing import activations, balance, outcome_labels, paper_labels
from tests.routing.nets import Residual, Three, routed, small_data


def test_papers_rule_against_loops():
    strength = torch.rand(40, 3, 4, generator=torch.Generator().manual_seed(0))
    expected: dict[int, int] = {}
    for layer in range(3):
        for feature in range(4):
            ranked = sorted(range(40), key=lambda image: -float(strength[image, layer, feature]))
            expected.update(dict.fromkeys(ranked[:5], layer))  # a deeper layer overwrites
    chosen, labels = paper_labels(strength, top=5)
    assert dict(zip(chosen.tolist(), labels.tolist())) == expected
    assert chosen.tolist() == sorted(expected)


def test_papers_rule_takes_the_first_of_equal_images():
    strength = torch.zeros(30, 2, 1)
    strength[5:20, 0] = 1.0
    strength[3:, 1] = 1.0
    chosen, labels = paper_labels(strength, top=10)
    first = set(range(5, 15)) - set(range(3, 13))
    assert set(chosen[labels == 0].tolist()) == first
    assert chosen[labels == 1].tolist() == list(range(3, 13))


def test_papers_rule_leaves_out_maps_that_never_fire():
    strength = torch.rand(20, 2, 3)
    strength[:, 1, 1:] = 0
    _, labels = paper_labels(strength, top=2)
    assert int((labels == 1).sum()) == 2


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="needs 10 images for every feature map, there are 9"):
        paper_labels(torch.rand(9, 2, 3))


def test_outcome_label_is_the_cheapest_depth_as_good_as_the_whole():
    right = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]]).bool()
    assert outcome_labels(right).tolist() == [0, 1, 2, 0, 0, 0, 0]


def test_balance_counts_and_finds_a_constant():
    mixed = balance(torch.tensor([0, 2, 2, 2]), 3)
    assert mixed.counts == (1, 0, 3)
    assert mixed.constant is None
    assert mixed.largest_share == 0.75
    assert balance(torch.tensor([1, 1]), 3).constant == 1


@pytest.mark.parametrize("network", [Three, Residual])
def test_activations_are_mean_absolute_values_behind_each_unit(network, monkeypatch):
    monkeypatch.setattr(observing, "_BATCH", 8)
    net, data = routed(network).eval(), small_data(20)
    strength = activations(net, data.train, data)
    x, _ = next(data.passing(data.train, 20))
    for depth in range(net.depths):
        x = net.segment(depth, x)
        count = min(10, x.shape[1])
        torch.testing.assert_close(strength[:, depth, :count], x.abs().mean((2, 3))[:, :10].detach())
        assert not strength[:, depth, count:].any()


def test_activations_of_maps_with_both_signs_do_not_cancel(monkeypatch):
    monkeypatch.setattr(observing, "_BATCH", 8)
    net, data = routed(Three), small_data(20)
    for depth, end in enumerate(net._ends):
        net.parts[end - 1].register_forward_hook(lambda _m, _x, y, sign=(-1) ** depth: sign * (y - y.mean()))
    strength = activations(net.eval(), data.train, data)
    x, _ = next(data.passing(data.train, 8))
    x = net.segment(0, x)
    assert x.min() < 0 < x.max()
    torch.testing.assert_close(strength[:8, 0, :4], x.abs().mean((2, 3)).detach())
    assert (strength >= 0).all() and strength[:, 2, :8].min() > 0


def test_balance_in_words():
    assert balance(torch.tensor([0, 2, 2, 2]), 3).in_words() == "depth 0 25.0%, depth 1 0.0%, depth 2 75.0%"
    assert balance(torch.tensor([], dtype=torch.int64), 2).in_words() == "depth 0 0.0%, depth 1 0.0%"
    assert balance(torch.tensor([], dtype=torch.int64), 2).largest_share == 0
