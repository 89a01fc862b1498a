"""The block: what its parts compute, what it hands on in each of its states, and where gradients end."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.errors import ModelError, UsageError
from compressor.primenet.block import Capsule, build_stage, entropy, local_head, pooling, strided, strides
from compressor.primenet.settings import PrimeNetSettings
from tests.primenet.nets import CLASSES, IMAGE, batch, network


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("scale", [1, 3, 5, 7])
def test_capsule_is_reduction_convolution_norm_and_leaky_relu(scale):
    capsule = Capsule(2, 5, scale, reduced=3, stride=(1, 1)).eval()
    x, _ = batch()
    reduced = F.conv2d(x, capsule.reduce.weight, capsule.reduce.bias)
    maps = F.conv2d(reduced, capsule.conv.weight, capsule.conv.bias, padding=scale // 2)
    expected = F.leaky_relu(maps / (1 + 1e-3) ** 0.5, 0.3)  # fresh statistics: mean 0, variance 1
    torch.testing.assert_close(capsule(x), expected)


def test_weights_start_as_keras_starts_them():
    capsule = Capsule(16, 64, 5, reduced=32, stride=(1, 1))
    limit = (6 / (25 * 32 + 25 * 64)) ** 0.5
    assert 0.98 * limit < capsule.conv.weight.abs().max() <= limit
    assert (capsule.conv.bias == 0.2).all() and (capsule.reduce.bias == 0.2).all()


def test_networks_loss_reaches_no_parameter_of_a_learning_block():
    net = network().train()
    x, y = batch()
    F.cross_entropy(net(x), y).backward()
    assert all(grad is None or not grad.any() for grad in gradients(net.stage.block))
    assert all(grad is not None and grad.any() for grad in gradients(net.rest))
    assert all(grad is not None and grad.any() for grad in gradients(net.stage.projection))


@pytest.mark.parametrize("scale", [3, 5, 7])
def test_a_local_loss_reaches_its_own_capsule_alone(scale):
    net = network().train()
    block, (x, y) = net.stage.block, batch()
    F.cross_entropy(block.heads[str(scale)](block.capsules[str(scale)](x)), y).backward()
    for other in (3, 5, 7):
        found = gradients(block.capsules[str(other)]) + gradients(block.heads[str(other)])
        assert all((grad is not None) == (other == scale) for grad in found)
    assert all(grad is None for grad in gradients(net.rest) + gradients(net.stage.projection))


def test_each_image_gets_the_maps_whose_classifier_is_surest():
    block = network().eval().stage.block
    x, _ = batch(12)
    maps = {scale: block.capsules[scale](x) for scale in block.capsules}
    sure = {scale: entropy(block.heads[scale](maps[scale])) for scale in maps}
    surest = [min(sure, key=lambda scale: sure[scale][image]) for image in range(len(x))]
    assert len(set(surest)) > 1
    expected = torch.stack([maps[scale][image] for image, scale in enumerate(surest)])
    assert torch.allclose(block(x), expected, atol=1e-6)
    assert torch.allclose(block(x[:1]), expected[:1], atol=1e-6)  # and not the batch's


def test_entropy_of_equal_scores_is_the_logarithm_of_the_classes():
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx([2.0794415] * 2)
    assert entropy(torch.tensor([[100.0, 0, 0]])).item() == pytest.approx(0, abs=1e-6)


def test_settled_on_one_scale_nothing_else_is_left():
    net = network()
    net.stage.block.settle_((5,))
    names = [name for name, _ in net.named_parameters()]
    assert not any("heads" in name or "capsules.3" in name or "capsules.7" in name for name in names)
    assert net.stage.block.scales == (5,)
    x, y = batch()
    F.cross_entropy(net(x), y).backward()  # an ordinary network from here on
    assert all(grad is not None for grad in gradients(net))


def test_settled_on_all_scales_keeps_the_classifiers_that_choose():
    block = network().stage.block
    block.settle_((3, 5, 7))
    assert block.scales == (3, 5, 7) and list(block.heads) == ["3", "5", "7"] and not block.learning


@pytest.mark.parametrize("size", [(28, 28), (32, 20), (15, 15)])
@pytest.mark.parametrize("target", [(14, 14), (13, 10), (7, 4), (1, 1)])
def test_pooling_reaches_every_size_exactly(size, target):
    kernel, stride = pooling(size, target)
    assert F.max_pool2d(torch.zeros(1, 1, *size), kernel, stride).shape[2:] == target
    stride = strides(size, target)
    maps = F.conv2d(torch.zeros(1, 1, *size), torch.zeros(1, 1, 5, 5), stride=stride, padding=2)
    assert maps.shape[2:] == strided(size, stride)


@pytest.mark.parametrize("fit", ["pool", "stride"])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (3, 5), (1, 1)])
def test_stage_has_the_shape_it_is_asked_for(fit, size):
    stage = build_stage(IMAGE, CLASSES, PrimeNetSettings(fit=fit), filters=5, projected=4, size=size)
    assert stage(torch.randn(2, *IMAGE)).shape == (2, 9, *size)


def test_projection_pools_then_convolves():
    stage = network().eval().stage
    x, _ = batch()
    pooled = F.max_pool2d(x, 3, 1, padding=1)
    expected = F.relu(F.conv2d(pooled, stage.projection[1].weight, stage.projection[1].bias))
    assert torch.equal(stage(x)[:, 6:], expected)
    assert torch.equal(stage(x)[:, :6], stage.block(x))


def test_local_classifier_of_large_maps_averages_them_first():
    head = local_head(64, (56, 56), 100)
    assert head[-1].in_features == 64 * 8 * 8 and head(torch.zeros(1, 64, 56, 56)).shape == (1, 100)
    assert local_head(64, (28, 28), 10)[-1].in_features == 64 * 28 * 28


@pytest.mark.parametrize("scales", [(), (3, 3), (2,), (3, 9)])
def test_refuses_scales_that_no_capsule_has(scales):
    with pytest.raises(UsageError, match="--scales"):
        build_stage(IMAGE, CLASSES, PrimeNetSettings(scales=scales))


def test_refuses_sizes_that_pooling_cannot_reach():
    with pytest.raises(ModelError, match="128x9x8"):
        build_stage(IMAGE, CLASSES, PrimeNetSettings(), size=(9, 8))
    with pytest.raises(UsageError, match="--fit"):
        build_stage(IMAGE, CLASSES, PrimeNetSettings(fit="crop"))


def test_classifiers_that_are_equally_sure_leave_it_to_the_smallest_scale():
    block = network().eval().stage.block
    block.settle_((3, 5, 7))
    for head in block.heads.values():
        nn.init.zeros_(head[-1].weight)
    x, _ = batch(5)
    assert torch.equal(block(x), block.capsules["3"](x))


@pytest.mark.parametrize(
    "wanted",
    [{"filters": 0}, {"projected": 0}, {"size": (IMAGE[1] + 1, IMAGE[2])}, {"size": (IMAGE[1], IMAGE[2] + 1)}],
    ids=str,
)
def test_a_stage_without_filters_or_projection_or_of_larger_maps_is_refused(wanted: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="the block cannot make .* choose another stage"):
        build_stage(IMAGE, CLASSES, PrimeNetSettings(), **{"filters": 4, "projected": 4, "size": (4, 4), **wanted})
