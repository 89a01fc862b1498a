"""The network as a module: holding parts of it still, and building it again from what a checkpoint says."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.errors import FileError, ModelError, UsageError
from compressor.primenet.network import (
    Capsule,
    PrimeNetwork,
    build_stage,
    entropy,
    local_head,
    pooling,
    strided,
    strides,
)
from compressor.primenet.place import Early, rebuild
from compressor.primenet.settings import PrimeNetSettings
from tests.primenet.nets import CLASSES, IMAGE, Residual, batch, network, plain


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
    with pytest.raises(UsageError, match="`scales`"):
        build_stage(IMAGE, CLASSES, PrimeNetSettings(scales=scales))


def test_refuses_sizes_that_pooling_cannot_reach():
    with pytest.raises(ModelError, match="128x9x8"):
        build_stage(IMAGE, CLASSES, PrimeNetSettings(), size=(9, 8))
    with pytest.raises(UsageError, match="`fit`"):
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


def test_only_the_named_parts_change():
    net = network()
    net.stage.block.settle_((3,))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with net.only((net.rest,)):
        net.train()
        optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), 0.1, weight_decay=0.1)
        x, y = batch()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("rest.") for name in changed)
    assert "rest.0.running_mean" in changed
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.train().modules())


@pytest.mark.parametrize("kept", [(5,), (3, 5, 7), None], ids=["static", "entropy", "learning"])
@pytest.mark.parametrize("fit", ["pool", "stride"])
def test_a_step_of_plain_data_builds_the_same_network_again(kept, fit):
    base = plain()
    early = Early(base, IMAGE, CLASSES, PrimeNetSettings(reduced=3, fit=fit))
    net = early.replaced(early.find("5")).eval()
    if kept is not None:
        net.stage.block.settle_(kept)
    step = json.loads(json.dumps(net.step()))
    again = rebuild(plain(), step).eval()
    assert isinstance(again, PrimeNetwork)
    again.load_state_dict(net.state_dict())
    x, _ = batch()
    assert torch.equal(again(x), net(x))
    assert again.step() == net.step()


def test_a_network_built_with_its_stage_only_settles():
    net = network().eval()
    net.stage.block.settle_((7,))
    again = rebuild(network(), net.step()).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(batch()[0]), net(batch()[0])) or again.stage.block.scales == (7,)
    assert rebuild(again, net.step()) is again


def test_a_stage_that_ends_outside_any_module_is_found_by_its_number():
    early = Early(Residual().eval(), IMAGE, CLASSES, PrimeNetSettings(reduced=3))
    net = early.replaced(early.places[1].cut)
    again = rebuild(Residual().eval(), net.step())
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in net.state_dict().items()
    }


@pytest.mark.parametrize(
    "broken",
    [
        {"scales": [9]},
        {"scales": "x"},
        {"origin": {}},
        {"origin": None},
        {"shape": [16, 5, 5]},
        {"until": "nothing"},
        {"fit": "crop"},
        {"image": [2, 8]},
    ],
    ids=lambda each: "-".join(f"{key}-{value}" for key, value in each.items()),
)
def test_a_damaged_step_is_one_clear_line(broken):
    early = Early(plain(), IMAGE, CLASSES, PrimeNetSettings(reduced=3))
    step = early.replaced(early.find("5")).step()
    for key, value in broken.items():
        (step if key in step else step["origin"])[key] = value
    with pytest.raises(FileError, match="checkpoint") as caught:
        rebuild(plain(), step)
    assert "\n" not in str(caught.value)
