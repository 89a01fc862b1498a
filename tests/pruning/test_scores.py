"""Each score against a slow, obvious version of its definition."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.pruning.scores import Given, bn_scale, fpgm, l1, l2, random, taylor
from compressor.pruning.selection import select
from compressor.pruning.settings import PruneSettings
from tests.pruning.nets import Grouped, Plain, Residual, batches

NOTHING = Given()


def shares(values):
    values = np.array(values)
    return values / values.mean()


@pytest.fixture
def plain():
    return Plain()


@pytest.fixture
def residual():
    return Residual()


@pytest.mark.parametrize(
    ("score", "measure"),
    [
        (l1, lambda filters, i: filters[i].abs().sum().item()),
        (l2, lambda filters, i: filters[i].pow(2).sum().sqrt().item()),
        (fpgm, lambda filters, i: sum((filters[i] - other).pow(2).sum().sqrt().item() for other in filters)),
    ],
    ids=["l1", "l2", "fpgm"],
)
def test_weight_scores_are_the_measure_over_its_layers_mean(plain, score, measure):
    channels = capture(plain, plain.example)
    filters = plain.two.weight.detach()
    expected = shares([measure(filters, i) for i in range(6)])
    np.testing.assert_allclose(score(plain, channels, NOTHING).values["two"], expected, rtol=1e-5)


def test_coupled_layers_are_averaged_after_each_was_divided_by_its_mean(residual):
    channels = capture(residual, residual.example)
    stem = shares([residual.stem.weight[i].abs().sum().item() for i in range(8)])
    back = shares([residual.back.weight[i].abs().sum().item() for i in range(8)])
    np.testing.assert_allclose(l1(residual, channels, NOTHING).values["stem"], (stem + back) / 2, rtol=1e-5)


def test_a_layer_with_larger_weights_counts_no_more(residual):
    channels = capture(residual, residual.example)
    before = l1(residual, channels, NOTHING).values["stem"]
    with torch.no_grad():
        residual.stem.weight.mul_(100)
    np.testing.assert_allclose(l1(residual, channels, NOTHING).values["stem"], before, rtol=1e-5)


def test_filters_of_grouped_layers_are_summed_over_the_groups():
    model = Grouped()
    channels = capture(model, model.example)
    group = channels.group("first")
    first = [model.first.weight.view(4, 4, 3)[:, i].abs().sum().item() for i in range(4)]
    np.testing.assert_allclose(l1(model, channels, NOTHING).values["first"], shares(first), rtol=1e-5)
    assert group.size == 4


def test_bn_scale_is_the_absolute_scale(plain):
    with torch.no_grad():
        plain.norm_two.weight.copy_(torch.tensor([0.5, -0.1, 0.3, 0.0, 2.0, -1.0]))
    scores = bn_scale(plain, capture(plain, plain.example), NOTHING)
    np.testing.assert_allclose(scores.values["two"], [0.5, 0.1, 0.3, 0.0, 2.0, 1.0], rtol=1e-6)


def test_bn_scale_says_which_groups_it_cannot_judge(residual):
    scores = bn_scale(residual, capture(residual, residual.example), NOTHING)
    assert list(scores.values) == ["stem"]
    assert "no normalisation layer" in scores.refused["inner"]


def test_bn_scale_refuses_a_model_without_batch_norm():
    model = Grouped()
    with pytest.raises(ModelError, match="use l1"):
        bn_scale(model, capture(model, model.example), NOTHING)


def loss_without(model, channel, readers, share, images, labels):
    """The loss when a share of a channel's columns is taken away from every reader."""
    saved = [reader.weight.detach().clone() for reader in readers]
    with torch.no_grad():
        for reader in readers:
            width = reader.weight.shape[1] // 8  # a flatten makes many columns of one channel
            reader.weight[:, channel * width : (channel + 1) * width] *= 1 - share
        loss = nn.functional.cross_entropy(model.eval()(images), labels).item()
        for reader, weight in zip(readers, saved):
            reader.weight.copy_(weight)
    return loss


def test_taylor_is_the_slope_of_the_loss_when_a_channel_is_taken_from_its_readers_in_means_of_the_layer():
    model = Residual().double().eval()
    data = [(images.double(), labels) for images, labels in batches()]
    scores = taylor(model, capture(model, model.example.double()), Given(data)).values["stem"]
    readers, step = [model.inner, model.out], 1e-5
    slopes = []
    for channel in range(8):
        squares = []
        for images, labels in data:
            above = loss_without(model, channel, readers, step, images, labels)
            below = loss_without(model, channel, readers, -step, images, labels)
            squares.append(((above - below) / (2 * step)) ** 2)
        slopes.append(np.sqrt(np.mean(squares)))
    assert scores == pytest.approx(slopes / np.mean(slopes), rel=1e-5)


def test_a_layer_to_which_the_loss_is_less_steep_is_not_emptied_by_a_global_ranking(plain):
    with torch.no_grad():
        plain.norm_two.weight *= 1e-3  # so all channels of `one` change the loss little
    channels = capture(plain, plain.example)
    scores = taylor(plain, channels, Given(batches()))
    assert all(values.mean() == pytest.approx(1) for values in scores.values.values())
    plan = select(channels, scores, PruneSettings(method="taylor", ratio=0.5, allocate="global", round_to=1)).plan
    assert {edit.group for edit in plan.edits} == {"one", "two"}


def test_taylor_finds_the_channel_that_nobody_reads(plain):
    with torch.no_grad():
        plain.two.weight[:, 3] = 0
    scores = taylor(plain, capture(plain, plain.example), Given(batches())).values["one"]
    assert scores[3] == 0 and scores.argmin() == 3


def test_random_depends_on_the_seed_alone(plain):
    channels = capture(plain, plain.example)
    one, same, other = (random(plain, channels, Given(seed=seed)).values["one"] for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
