import subprocess
import sys

import pytest
import torch

from compressor.errors import UsageError
from compressor.vision import door as vision


def test_operators_declared_only_where_torchvision_has_none():
    compiled = vision.torchvision.extension._has_ops()
    assert (vision._operators is None) == compiled
    assert torch.ops.torchvision.nms.default is not None


@pytest.mark.parametrize("name", ["_C.so", "_C_stable.so"])
def test_the_compiled_operators_of_every_torchvision_are_found(name, tmp_path):
    """Where they are not, they are declared a second time: from torchvision 0.29 on that ends the process."""
    for other in (name, "_C.cpp", "image.so", "__init__.py"):
        (tmp_path / other).touch()
    assert vision._compiled([str(tmp_path)]) == [tmp_path / name]


def test_build_gives_random_weights_and_takes_arguments():
    module = vision.build("squeezenet1_1", num_classes=3).eval()
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_build_googlenet_is_silent_and_keeps_torchvisions_own_initialisation():
    with torch.device("meta"):  # shapes are enough, the initialisation costs seconds
        module = vision.build("googlenet", num_classes=5)
    assert module.aux1.fc2.out_features == 5


@pytest.mark.parametrize("name", ["resnet19", "", "fasterrcnn_resnet50_fpn", "ResNet18"])
def test_build_unknown_name_says_which_exist(name):
    with pytest.raises(UsageError) as caught:
        vision.build(name)
    assert "mobilenet_v3_small" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["weights", "progress", "weights_backbone"])
def test_build_never_downloads(argument):
    with pytest.raises(UsageError, match=argument):
        vision.build("resnet18", **{argument: "DEFAULT"})


def test_build_unknown_argument_is_the_users_error():
    with pytest.raises(UsageError, match="no_such_argument"):
        vision.build("resnet18", no_such_argument=1)


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 224), ("inception_v3", 299), ("efficientnet_b1", 240), ("vit_h_14", 224)]
)
def test_default_preset_has_the_size_that_the_builder_assumes(name, size):
    preset = vision.default_preset(name)
    assert preset.input_shape == (3, size, size)
    assert preset.num_classes == 1000
    assert all(0 < value < 1 for value in preset.preparation.mean + preset.preparation.std)


def test_every_classifier_has_a_preset():
    for name in vision.classifiers():
        assert vision.default_preset(name).input_shape[0] == 3


@pytest.mark.slow
def test_beside_torch_the_door_is_open_for_others_too() -> None:
    program = "import torch, compressor.vision, torchvision, sys; print('compressor.vision.door' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
