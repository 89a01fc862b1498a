import pytest
import torch

from compressor.errors import FileError, UsageError
from compressor.loading.arch import Arch, data_arguments, find, parse_arch
from tests.loading import nets


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("torchvision:resnet18", "torchvision:resnet18", {}),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k", {}),
        ("nets/my.net.py:build", "nets/my.net.py:build", {}),
        ("a.py:build:width=0.25,pool=(2, 2),act=relu", "a.py:build", {"width": 0.25, "pool": (2, 2), "act": "relu"}),
        ("torchvision:vgg11:num_classes=10", "torchvision:vgg11", {"num_classes": 10}),
    ],
)
def test_parse_arch_reads_name_and_arguments(text, name, arguments):
    arch = parse_arch(text)
    assert (arch.name, arch.arguments) == (name, arguments)
    assert parse_arch(str(arch)) == arch


def test_parse_arch_lays_given_arguments_over_written_ones():
    assert parse_arch("a.py:build:width=2,depth=3", {"width": 4}).arguments == {"width": 4, "depth": 3}


@pytest.mark.parametrize("text", ["", "resnet18", "net.py", "net.py:", "torchvision:", "keras:vgg", "a.py:build:width"])
def test_parse_arch_refuses_other_forms_and_says_which_exist(text):
    with pytest.raises(UsageError, match=r"torchvision:NAME, timm:NAME, sample:NAME, FILE\.py:FUNCTION or package\."):
        parse_arch(text)


def test_parse_arch_guesses_the_missing_kind():
    with pytest.raises(UsageError, match="did you mean torchvision:resnet18"):
        parse_arch("resnet18")


@pytest.mark.parametrize("text", ["torchvision:resnet19", "timm:resnet19"])
def test_unknown_names_say_which_exist(text):
    with pytest.raises(UsageError, match="resnet18"):
        find(parse_arch(text), named=True)


@pytest.mark.parametrize("text", ["timm:resnet18:pretrained=True", "timm:resnet18:checkpoint_path=/etc/passwd"])
def test_timm_reads_nothing(text):
    with pytest.raises(UsageError, match="give a file with the weights"):
        find(parse_arch(text), named=True)


def test_timm_builds_by_name():
    definition = find(parse_arch("timm:resnet10t:num_classes=3,in_chans=1"), named=True)
    assert definition.shape() == (1, 176, 176)
    assert definition.build().eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


def test_timm_wrong_argument_is_the_users_error():
    with pytest.raises(UsageError, match="no_such_thing"):
        find(parse_arch("timm:resnet10t:no_such_thing=3"), named=True).build()


def test_file_is_built_with_arguments_and_its_input_shape(tmp_path):
    definition = find(parse_arch(nets.write(tmp_path) + ":in_channels=3,width=4"), named=True)
    assert definition.shape() == (3, 8, 8)
    assert definition.arch.sha256
    assert definition.build().conv.weight.shape == (4, 3, 3, 3)


def test_network_inside_dataparallel_is_the_network(tmp_path):
    source = "from torch import nn\ndef build(): return nn.DataParallel(nn.Sequential(nn.Conv2d(1, 2, 3)))\n"
    definition = find(parse_arch(nets.write(tmp_path, source)), named=True)
    assert list(definition.build().state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("source", "function", "error", "says"),
    [
        (nets.SOURCE, "make", UsageError, "it defines: Net, build, number, fails"),
        (nets.SOURCE, "INPUT_SHAPE", UsageError, "no function"),
        (nets.SOURCE, "number", UsageError, "returned a int"),
        (nets.SOURCE, "fails", UsageError, r"RuntimeError: no such luck \(line 27\)"),
        ("def build(:\n", "build", FileError, "SyntaxError"),
        ("import no_such_package\n", "build", FileError, "No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", "build", FileError, "SystemExit"),
        ("x = 1\n1 / 0\n", "build", FileError, r"ZeroDivisionError.*line 2"),
        ("INPUT_SHAPE = 'big'\ndef build(): ...\n", "build", FileError, "channels, height, width"),
    ],
)
def test_files_that_do_not_work_are_one_line(tmp_path, source, function, error, says):
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(error, match=says) as caught:
        find(Arch(f"{tmp_path / 'net.py'}:{function}"), named=True).build()
    assert "\n" not in str(caught.value)


def test_wrong_argument_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"called with \(depth=3\) failed: TypeError"):
        find(parse_arch(nets.write(tmp_path) + ":depth=3"), named=True).build()


def test_file_imports_its_neighbours(tmp_path):
    (tmp_path / "layers_of_mine.py").write_text("from torch import nn\nLayer = nn.ReLU\n")
    text = nets.write(tmp_path, "from layers_of_mine import Layer\ndef build(): return Layer()\n")
    assert isinstance(find(parse_arch(text), named=True).build(), torch.nn.ReLU)


def test_missing_file_is_named():
    with pytest.raises(UsageError, match=r"no_such\.py is not there"):
        find(parse_arch("no_such.py:build"), named=True)


def test_data_arguments_are_those_that_the_network_takes(tmp_path):
    mine = nets.write(tmp_path)
    for text, expected in [
        (mine, {"num_classes": 7, "in_channels": 1}),
        (mine + ":num_classes=9", {"in_channels": 1}),
        ("torchvision:resnet18", {"num_classes": 7}),
        ("timm:resnet10t", {"num_classes": 7, "in_chans": 1}),
    ]:
        assert data_arguments(parse_arch(text), num_classes=7, channels=1) == expected
