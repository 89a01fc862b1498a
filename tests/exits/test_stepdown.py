"""The step-down makes exactly the feature map's size of the image, whatever the ratio."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.exits.stepdown import StepDown, StepDownPlan, plan_step_down, step_down
from compressor.files.plain import from_plain, plain


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
