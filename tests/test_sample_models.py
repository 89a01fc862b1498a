"""Each sample model is what its paper says, and opens the way a user's own file would."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.errors import UsageError
from compressor.loading.arch import data_arguments, parse_arch
from compressor.loading.opening import open_model

FOLDER = Path(__file__).parents[1] / "sample_models"
# Net2 of the table: weights of the convolutions; bias, scale and shift of each filter; the linear layers likewise.
NET2_CONVOLUTIONS = 25 * (3 + 2 * 256) * 256 + 9 * (4 * 256 * 256 + 256 * 512 + 4 * 512 * 512) + 3 * (7 * 256 + 5 * 512)
NET2_LINEAR = 147_968 * 512 + 512 * 512 + 2 * 3 * 512 + 512 * 10 + 10

# Parameters at default size.
PARAMETERS = {
    "vgg16_cifar": 14_728_266,
    "vgg11": 9_231_114,
    "net2": NET2_CONVOLUTIONS + NET2_LINEAR,
    "resnet_cifar": 272_474,
    "mlp": 1_238_730,  # the figure of the paper
    "cnn3": 525_066,
    "digits_cnn": 56_554,
    "primenet": 2_121_768,  # while it learns; with one scale and without local classifiers 464,394 of 3x3
}
NARROW = {name: {"width": 0.125} for name in PARAMETERS} | {"mlp": {"size": 8}}


def arch(name: str) -> str:
    return f"{FOLDER / name}.py:build"


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_file_is_tested():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"train_digits"}
    assert files == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_paper(name):
    with torch.device("meta"):
        opened_parameters = count(build(name))
    assert opened_parameters == PARAMETERS[name]


def build(name: str, **arguments) -> nn.Module:
    from compressor.loading.arch import find

    return find(parse_arch(arch(name), arguments), named=True).build()


@pytest.mark.parametrize("name", PARAMETERS)
def test_takes_its_input_shape_and_gives_logits(name):
    opened = open_model(None, arch=arch(name), arch_arguments={"num_classes": 7, "in_channels": 2, **NARROW[name]})
    assert opened.input_shape[0] == 2
    with torch.no_grad():
        assert opened.module(torch.rand(2, *opened.input_shape)).shape == (2, 7)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_data_set_says_classes_and_channels(name):
    assert data_arguments(parse_arch(arch(name)), num_classes=3, channels=1) == {"num_classes": 3, "in_channels": 1}


@pytest.mark.parametrize("name", ["vgg16_cifar", "vgg11"])
def test_vgg_takes_images_of_mnist_too(name):
    module = build(name, in_channels=1, width=0.125).eval()
    assert module(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_vgg16_costs_what_the_paper_says_by_thop():
    import thop

    macs, _ = thop.profile(build("vgg16_cifar").eval(), (torch.zeros(1, 3, 32, 32),), verbose=False)
    assert round(macs / 1e9, 3) == 0.314


def test_net2_has_the_maps_of_the_papers_table():
    shapes = []
    module = build("net2", width=0.03125).eval()
    for layer in module.features:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            layer.register_forward_hook(lambda _, __, output: shapes.append(output.shape[-1]))
    module(torch.zeros(1, 3, 64, 64))
    assert shapes == [60, 56, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 17]


def test_resnet_depths_are_6n_plus_2():
    assert len(list(build("resnet_cifar", depth=56).stages.children())) == 3
    convolutions = [each for each in build("resnet_cifar", depth=56).modules() if isinstance(each, nn.Conv2d)]
    assert len([each for each in convolutions if each.kernel_size == (3, 3)]) == 55
    with pytest.raises(UsageError, match="6n"):
        build("resnet_cifar", depth=21)


def test_trained_digits_network_is_as_good_as_it_says(monkeypatch):
    from compressor.training.data import open_data
    from compressor.training.evaluate import evaluate

    monkeypatch.chdir(FOLDER.parent)
    opened = open_model("sample_models/digits_cnn.safetensors")
    data = open_data("digits")
    top1 = evaluate(opened.module, data.test, data).top1
    assert top1 == pytest.approx(opened.measurements["top1"], abs=0.006)  # two images may fall either way elsewhere
    assert top1 > 0.97
    assert (opened.input_shape, opened.classes) == ((1, 8, 8), data.classes)
    assert Path("sample_models/digits_cnn.safetensors").stat().st_size < 500_000
