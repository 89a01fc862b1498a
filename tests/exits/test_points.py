"""Cut points: where they are legal, what a sub-model there costs, which are chosen."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compressor.errors import ModelError, UsageError
from compressor.exits.cutting import choose_points, nearest
from compressor.exits.detachable import make_detachable
from compressor.exits.points import StepDown, StepDownPlan, Survey, legal_points, plan_step_down, step_down
from compressor.exits.settings import DetachSettings
from compressor.files.plain import from_plain, plain
from compressor.profiling.costs import profile
from sample_models import vgg16_cifar
from tests.exits.nets import CONVOLUTIONAL, SHAPE, Plain, Residual, images, perceptron


@pytest.fixture(scope="module")
def vgg() -> Survey:
    return Survey(vgg16_cifar.build(), (3, 32, 32))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_legal_points_of_small_networks(name):
    base = CONVOLUTIONAL[name]()
    assert tuple(point.at for point in Survey(base, SHAPE).points) == base.legal


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_listed_costs_are_those_of_the_sub_models(name):
    found = Survey(CONVOLUTIONAL[name](), SHAPE)
    model = make_detachable(found, {point.at: point.plan for point in found.points}, "stats")
    for number, point in enumerate(found.points, start=1):
        cost = profile(model.detach(number), images(count=1), layers=False)
        assert (point.macs, point.params) == (cost.macs, cost.params)
        shared = {id(p) for p in model.base.parameters()}
        assert point.own_params == sum(p.numel() for p in model.detach(number).parameters() if id(p) not in shared)


def test_vgg16_costs_what_the_paper_says(vgg):
    chosen = choose_points(vgg, DetachSettings(at=("features.7", "features.24")))
    assert (vgg.macs, *(point.macs for point in chosen)) == (313_201_664, 273_880_064, 123_474_944)
    model = make_detachable(vgg, {point.at: point.plan for point in chosen}, "stats")
    thop = [profile(model.detach(number), images((3, 32, 32), 1), layers=False).macs_thop for number in range(3)]
    assert [round(macs / 1e9, 3) for macs in thop] == [0.314, 0.275, 0.124]


def test_points_lie_before_convolutions_and_not_behind_global_pooling(vgg):
    assert [point.at for point in vgg.points][:3] == ["features.3", "features.7", "features.10"]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 5, 1), nn.Flatten())
    assert tuple(point.at for point in Survey(nn.Sequential(*list(Plain())[:10], *head), SHAPE).points) == Plain.legal


def test_activation_and_norm_are_those_before_the_point():
    plans = {name: Survey(net(), SHAPE).points[-1].plan for name, net in CONVOLUTIONAL.items()}
    assert plans["plain"].activation == ("relu",) and plans["plain"].norm
    assert plans["bare"].activation == ("leaky_relu", 0.1) and not plans["bare"].norm
    assert plans["grouped"].activation == ("hardtanh", 0.0, 6.0) or plans["grouped"].activation == ("relu6",)
    linear_end = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.ReLU())
    assert Survey(linear_end, SHAPE).points[0].plan.activation is None


def test_evenly_spread_exits_are_the_nearest_that_exist(vgg):
    for exits in (1, 2, 3):
        chosen = choose_points(vgg, DetachSettings(exits=exits))
        wanted = [vgg.macs * (1 - (number + 1) / (exits + 1)) for number in range(exits)]
        distance = sum(abs(point.macs - target) for point, target in zip(chosen, wanted))
        every = itertools.combinations(vgg.points, exits)
        assert distance == min(sum(abs(p.macs - w) for p, w in zip(points, wanted)) for points in every)
    assert choose_points(vgg, DetachSettings()) == choose_points(vgg, DetachSettings(exits=2))


def test_targets_are_fractions_of_the_base(vgg):
    chosen = choose_points(vgg, DetachSettings(targets=(0.395, 0.875)))
    assert [point.at for point in chosen] == ["features.7", "features.24"]


def test_wanted_costs_that_coincide_get_distinct_points(vgg):
    chosen = nearest(vgg.points, [vgg.points[3].macs] * 2)
    assert len({point.at for point in chosen}) == 2 and vgg.points[3] in chosen


def test_a_point_answers_to_the_modules_that_begin_there():
    found = Survey(Residual(), SHAPE)
    for name in ("blocks.1", "blocks.1.conv1", "module.blocks.1", "_orig_mod.blocks.1.conv1", "blocks.1.conv1.weight"):
        assert choose_points(found, DetachSettings(at=(name,)))[0].at == "blocks.1"
    assert choose_points(found, DetachSettings(at=("blocks.0",)))[0].at == "blocks"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": ("features.6",)}, "'features.6' is no legal cut point; the nearest legal ones are features.3, "),
        ({"at": ("head",)}, "'head' is no module of the network; the nearest legal ones are features.3"),
        ({"at": ("feature.3",)}, r"no module of the network \(did you mean features.3\?\); the nearest"),
        ({"at": ("features.7", "features.7")}, "names one cut point twice"),
        ({"at": ("features.7",), "targets": (0.5,)}, "not both"),
        ({"at": ("features.7",), "exits": 2}, "2 exits, and 1 in `at`"),
        ({"targets": (0.5, 1.5)}, "between 0 and 1"),
        ({"exits": 0}, "no sub-model was asked for"),
        ({"exits": 40}, "40 exits were asked for, and there are 12 legal points"),
    ],
)
def test_impossible_wishes_are_one_clear_line(vgg, settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        choose_points(vgg, DetachSettings(**settings))
    assert "\n" not in str(caught.value)


def test_networks_without_points_say_why():
    with pytest.raises(ModelError, match="no convolution.*`method` nsn"):
        legal_points(perceptron(), torch.zeros(1, 1, 3, 4))
    with pytest.raises(ModelError, match="no point where one feature map alone"):
        legal_points(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)), images())


@pytest.mark.parametrize(
    ("image", "feature", "kernel", "stride"),
    [(32, 16, 2, 2), (32, 4, 8, 8), (28, 13, 4, 2), (224, 55, 8, 4), (299, 35, 27, 8), (32, 1, 32, 32)],
)
def test_known_sizes(image, feature, kernel, stride):
    assert step_down(image, feature) == (kernel, stride)


@given(st.integers(1, 120).flatmap(lambda image: st.tuples(st.just(image), st.integers(1, image))))
def test_output_has_the_size_and_every_pixel_is_read(sizes):
    image, feature = sizes
    kernel, stride = step_down(image, feature)
    assert (image - kernel) // stride + 1 == feature
    assert kernel >= stride and (feature - 1) * stride + kernel == image


@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.floats(0.02, 1)] * 2))
def test_plan_makes_the_feature_map(image, shares):
    feature = tuple(max(1, int(size * share)) for size, share in zip(image, shares))
    plan = plan_step_down((3, *image), (2, *feature), norm=False, activation=None)
    assert all(kernel <= 2 * stride + 1 for kernel, stride in zip(plan.kernel, plan.stride))
    assert StepDown(plan)(torch.zeros(1, 3, *image)).shape == (1, 2, *feature)


def test_long_kernels_are_replaced_by_resizing():
    plan = plan_step_down((3, 32, 32), (8, 20, 16), norm=True, activation=("relu",))
    assert (plan.resize, plan.kernel, plan.stride) == ((40, 32), (2, 2), (2, 2))
    assert plan.note == "32x32 to 20x16 does not divide: the image is resized to 40x32 first"


def test_note_says_what_does_not_divide():
    assert plan_step_down((1, 28, 28), (8, 14, 14), norm=True, activation=None).note is None
    note = plan_step_down((1, 28, 28), (8, 13, 13), norm=True, activation=None).note
    assert note == "28x28 to 13x13 does not divide: kernels of 4x4 overlap at stride 2x2"


def test_layer_is_convolution_norm_activation():
    plan = plan_step_down((3, 8, 8), (4, 2, 2), norm=True, activation=("hardtanh", 0.0, 6.0))
    layer, x = StepDown(plan), torch.randn(4, 3, 8, 8)
    by_hand = functional.conv2d(x, layer.conv.weight, stride=4)
    by_hand = functional.hardtanh(functional.batch_norm(by_hand, None, None, training=True), 0, 6)
    torch.testing.assert_close(layer(x), by_hand)
    assert layer.conv.bias is None
    plain = StepDown(plan_step_down((3, 8, 8), (4, 2, 2), norm=False, activation=None))
    assert plain.conv.bias is not None and isinstance(plain.norm, nn.Identity)


def test_plan_survives_as_plain_data():
    plan = plan_step_down((3, 32, 32), (8, 20, 20), norm=True, activation=("leaky_relu", 0.1))
    assert from_plain(StepDownPlan, plain(plan)) == plan


def test_small_images_are_refused():
    with pytest.raises(ModelError, match="smaller"):
        step_down(4, 8)
    layer = StepDown(plan_step_down((3, 32, 32), (4, 4, 4), norm=True, activation=None))
    with pytest.raises(ModelError, match="an image of 4x4 does not fit .* stride 8x8 takes 32x32"):
        layer(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("image", range(1, 65))
def test_images_are_resized_where_a_kernel_would_be_longer_than_twice_its_stride_and_one(image):
    for feature in range(1, image + 1):
        kernel, stride = step_down(image, feature)
        plan = plan_step_down((1, image, image), (2, feature, 1), norm=False, activation=None)
        if kernel > 2 * stride + 1:
            even = max(1, round(image / feature))
            assert (plan.resize, plan.kernel[0], plan.stride[0]) == ((feature * even, image), even, even)
        else:
            assert (plan.resize, plan.kernel[0], plan.stride[0]) == (None, kernel, stride)


@pytest.mark.parametrize("name", ["convolution", "no such thing"])
def test_only_activations_are_activations(name):
    with pytest.raises(ValueError, match=f"there is no activation '{name}'"):
        StepDown(plan_step_down((3, 32, 32), (8, 16, 16), norm=True, activation=(name,)))
