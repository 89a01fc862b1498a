"""What is written opens again, the same: whole, edited, of every kind of architecture; and nothing is overwritten."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import compressor
from compressor.errors import CompressorError, FileError, ModelError, UsageError
from compressor.loading.opening import open_model
from compressor.loading.saving import save_model
from compressor.vision import door as vision
from compressor.vision.preparation import Preparation
from tests.loading import nets
from tests.loading.checkpoints import change, header_of


def assert_same_outputs(one: nn.Module, other: nn.Module, *shape: int) -> None:
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert torch.equal(one.eval()(x), other.eval()(x))


def test_everything_that_was_said_comes_back(tmp_path):
    arch = nets.write(tmp_path)
    opened = open_model(None, arch=arch, arch_arguments={"num_classes": 2, "width": 4})
    known = replace(opened, classes=("cat", "dog"), preparation=Preparation((0.5,), (0.25,), interpolation="bicubic"))
    save_model(
        known,
        tmp_path / "runs" / "new" / "model.safetensors",
        history=["compressor train ..."],
        measurements={"macs": np.int64(12), "top1": None, "latency_ms": {"torch": (1.0, 2)}},
    )
    again = open_model(tmp_path / "runs" / "new" / "model.safetensors")
    assert_same_outputs(opened.module, again.module, 1, 8, 8)
    assert again.arch == opened.arch
    assert again.input_shape == (1, 8, 8)
    assert (again.classes, again.preparation) == (known.classes, known.preparation)
    assert again.history == ("compressor train ...",)
    assert again.measurements == {"macs": 12, "top1": None, "latency_ms": {"torch": (1.0, 2)}}
    save_model(again, tmp_path / "next.pt", history=["compressor prune ..."])
    assert open_model(tmp_path / "next.pt").history == ("compressor train ...", "compressor prune ...")


def test_edited_network_opens_with_its_sizes(tmp_path):
    opened = open_model(None, arch=nets.write(tmp_path))
    nets.narrow_(opened.module, 3)
    save_model(opened, tmp_path / "model.safetensors")
    again = open_model(tmp_path / "model.safetensors")
    assert again.module.conv.out_channels == 3
    assert_same_outputs(opened.module, again.module, 1, 8, 8)
    assert (tmp_path / "model.safetensors").stat().st_size < 3000  # the cut-off rows are not in the file


def test_file_is_a_state_dict_for_everybody(tmp_path):
    opened = open_model(None, arch=nets.write(tmp_path))
    save_model(opened, tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    assert state.keys() == opened.module.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in opened.module.state_dict().items())
    plain = tmp_path / "net.py"
    assert (tmp_path / "model.safetensors").stat().st_mode == plain.stat().st_mode


def test_header_says_how_the_network_is_built(tmp_path):
    save_model(open_model(None, arch=nets.write(tmp_path)), tmp_path / "model.safetensors")
    header = header_of(tmp_path / "model.safetensors")
    assert header["version"] == 1
    assert header["arch"]["sha256"]
    assert header["input_shape"] == [1, 8, 8]


def test_torchvision_network_opens_without_naming_it_again(tmp_path):
    module = vision.build("squeezenet1_1", num_classes=3)
    compressor.save(module, tmp_path / "m.pt", arch="torchvision:squeezenet1_1:num_classes=3", input_shape=(3, 64, 64))
    again = open_model(tmp_path / "m.pt")
    assert_same_outputs(module, again.module, 3, 64, 64)
    assert again.input_shape == (3, 64, 64)


def test_network_of_torchs_layers_needs_no_architecture(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    module[0].weight.grad = torch.ones_like(module[0].weight)
    module[2].register_forward_hook(lambda *_: None)
    compressor.save(module, tmp_path / "m.pt", input_shape=(1, 8, 8))
    again = open_model(tmp_path / "m.pt")
    assert_same_outputs(module, again.module, 1, 8, 8)
    assert not again.module[2]._forward_hooks
    assert len(module[2]._forward_hooks) == 1
    with pytest.raises(UsageError, match="leave `arch` away"):
        open_model(tmp_path / "m.pt", arch="torchvision:resnet18")


def test_network_of_own_code_needs_its_architecture(tmp_path):
    module = open_model(None, arch=nets.write(tmp_path)).module
    with pytest.raises(UsageError, match="say how with `arch`"):
        compressor.save(module, tmp_path / "m.pt")
    holds_a_function = nn.Sequential(nn.ReLU())
    holds_a_function.act = torch.relu
    with pytest.raises(UsageError, match="act is a .*`arch`"):
        compressor.save(holds_a_function, tmp_path / "m.pt")
    holds_a_function.act = lambda x: x
    with pytest.raises(UsageError, match="say how with `arch`"):
        compressor.save(holds_a_function, tmp_path / "m.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_wrong_architecture_is_found_while_saving(tmp_path):
    with pytest.raises(ModelError, match="not an edited torchvision:resnet18"):
        compressor.save(vision.build("squeezenet1_1"), tmp_path / "m.pt", arch="torchvision:resnet18")
    assert not list(tmp_path.iterdir())


def test_wrappers_are_taken_off(tmp_path):
    arch = nets.write(tmp_path)
    opened = open_model(None, arch=arch)
    save_model(nn.DataParallel(opened.module), tmp_path / "m.pt", arch=arch)
    assert_same_outputs(opened.module, compressor.load(tmp_path / "m.pt"), 1, 8, 8)


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "m.pt").write_text("precious")
    opened = open_model(None, arch=nets.write(tmp_path))
    with pytest.raises(FileError, match="exists"):
        save_model(opened, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_text() == "precious"
    save_model(opened, tmp_path / "m.pt", overwrite=True)
    assert compressor.load(tmp_path / "m.pt")


def test_failed_write_leaves_the_old_file_and_no_new_one(tmp_path, monkeypatch):
    opened = open_model(None, arch=nets.write(tmp_path))
    save_model(opened, tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left"):
        save_model(opened, tmp_path / "m.pt", overwrite=True)
    assert (tmp_path / "m.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "net.py"]


def test_values_that_would_need_code_are_refused(tmp_path):
    opened = open_model(None, arch=nets.write(tmp_path))
    with pytest.raises(UsageError, match=r"measurements.where is a .*PosixPath"):
        save_model(opened, tmp_path / "m.pt", measurements={"where": tmp_path})


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weights_that_a_hook_computes_are_refused_until_they_are_plain(tmp_path):
    module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU()).eval()
    x = torch.randn(2, 1, 5, 5)
    expected = module(x)
    with pytest.raises(UsageError, match="computes its weight in a hook .WeightNorm.*remove_weight_norm"):
        compressor.save(module, tmp_path / "model.safetensors")
    nn.utils.remove_weight_norm(module[0])
    compressor.save(module, tmp_path / "model.safetensors")
    torch.testing.assert_close(compressor.load(tmp_path / "model.safetensors")(x), expected)


def test_tensors_that_a_module_remembers_are_no_hindrance(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    module[0].last = module[0].weight * 2  # with a gradient of its own, which deepcopy refuses
    compressor.save(module, tmp_path / "model.safetensors")
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(compressor.load(tmp_path / "model.safetensors")(x), module(x))


def test_saving_spends_no_random_numbers(tmp_path):
    opened = open_model(None, arch=nets.write(tmp_path))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    save_model(opened, tmp_path / "m.pt")
    assert torch.equal(torch.rand(3), expected)


def strided(strides) -> dict:
    return {"$tensor": ["conv.weight", strides]}


DAMAGES = {
    "no version": lambda h, t: h.pop("version"),
    "a newer version": lambda h, t: h.update(version=2),
    "version is text": lambda h, t: h.update(version="1"),
    "field missing": lambda h, t: h.pop("classes"),
    "field unknown": lambda h, t: h.update(module="x"),
    "tensor missing": lambda h, t: t.pop("conv.weight"),
    "tensor unknown": lambda h, t: t.update(more=torch.zeros(1)),
    "arch without arguments": lambda h, t: h.update(arch={"name": "net.py:build"}),
    "arch with a dict in its arguments": lambda h, t: h["arch"].update(arguments={"width": {"a": 1}}),
    "arch is text": lambda h, t: h.update(arch="net.py:build"),
    "no arch": lambda h, t: h.update(arch=None),
    "two networks": lambda h, t: h.update(blueprint={}),
    "another network": lambda h, t: h.update(arch=None, blueprint={"layers": {}, "tensors": {}}),
    "tensors without end": lambda h, t: h.update(
        arch=None, blueprint={"layers": {}, "tensors": {"a": ["float32", [2**40]]}}
    ),
    "input is text": lambda h, t: h.update(input_shape="wide"),
    "input is fractions": lambda h, t: h.update(input_shape=[1, 8.5, 8]),
    "input is negative": lambda h, t: h.update(input_shape=[1, -8, 8]),
    "input without end": lambda h, t: h.update(input_shape=[2**40, 2**40]),
    "classes are numbers": lambda h, t: h.update(classes=[1, 2]),
    "mean is not finite": lambda h, t: h.update(preparation={"mean": [{"$float": "nan"}], "std": [1.0]}),
    "preparation is unknown": lambda h, t: h.update(preparation={"mean": [0.5], "std": [1.0], "interpolation": "x"}),
    "shape of another tensor": lambda h, t: h["structure"].update(shapes={"conv.weight": [1, 1]}),
    "shape is text": lambda h, t: h["structure"].update(shapes={"conv.weight": "text"}),
    "method replaced": lambda h, t: h["structure"].update(attributes={"conv": {"forward": 3}}),
    "attributes are a number": lambda h, t: h["structure"].update(attributes=3),
    "measurements are a number": lambda h, t: h.update(measurements=3),
    "tied to nothing": lambda h, t: h["state"].update({"conv.weight": {"$tensor": "b"}}),
    "tensor left out": lambda h, t: h["state"].pop("conv.weight"),
    "strides without end": lambda h, t: h["state"].update({"conv.weight": strided([2**40, 1, 1, 1])}),
    "strides are text": lambda h, t: h["state"].update({"conv.weight": strided("wide")}),
    "extra state of nobody": lambda h, t: h["state"].update({"conv._extra_state": 1}),
    "unknown form": lambda h, t: h.update(measurements={"a": {"$call": "os.system"}}),
}


@pytest.mark.parametrize("edit", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoints_are_one_line(tmp_path, edit):
    save_model(open_model(None, arch=nets.write(tmp_path)), tmp_path / "m.pt")
    change(tmp_path / "m.pt", edit)
    with pytest.raises(FileError) as caught:
        open_model(tmp_path / "m.pt")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "header",
    [
        {f"layer{number}.weight": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(65_537)},
        {"w" * (16 << 20): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
        {"__metadata__": {str(number): "" for number in range(65_537)}},
    ],
    ids=["names", "bytes", "texts"],
)
def test_header_without_measure_never_reaches_the_library(tmp_path, monkeypatch, header):
    encoded = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    monkeypatch.setattr("safetensors.torch.load", lambda data: pytest.fail("it was read"))
    with pytest.raises(FileError, match="a header of"):
        open_model(tmp_path / "m.safetensors", arch="torchvision:resnet18")


def test_one_changed_bit_is_found(tmp_path):
    save_model(open_model(None, arch=nets.write(tmp_path)), tmp_path / "m.pt")
    whole = bytearray((tmp_path / "m.pt").read_bytes())
    for place in range(0, len(whole), 97):
        whole[place] ^= 1
        (tmp_path / "m.pt").write_bytes(whole)
        with pytest.raises(CompressorError):
            open_model(tmp_path / "m.pt")
        whole[place] ^= 1


@pytest.mark.parametrize("name", ["a" * 5000 + ".py:build", "a\0.py:build", "", ":", "/:build"])
def test_file_names_that_no_file_has_are_one_line(tmp_path, name):
    save_model(open_model(None, arch=nets.write(tmp_path)), tmp_path / "m.pt")
    change(tmp_path / "m.pt", lambda header, tensors: header["arch"].update(name=name))
    with pytest.raises(CompressorError, match="architecture") as caught:
        open_model(tmp_path / "m.pt")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_checkpoint_downloads_nothing(tmp_path):
    compressor.save(vision.build("squeezenet1_1"), tmp_path / "m.pt", arch="torchvision:squeezenet1_1")
    change(tmp_path / "m.pt", lambda header, tensors: header["arch"].update(arguments={"weights": "DEFAULT"}))
    with pytest.raises(UsageError, match="without `weights`"):
        compressor.load(tmp_path / "m.pt")


@pytest.mark.parametrize("arch", [None, "FILE"], ids=["by its layers", "by its architecture"])
def test_memory_format_and_ties_and_buffers_outside_the_state_dict_come_back(tmp_path, arch):
    source = """
from torch import nn
def build():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    net[1].register_buffer("scale", nn.Parameter(net[1].weight).detach() * 0, persistent=False)
    return net
"""
    path = nets.write(tmp_path, source)
    net = open_model(None, arch=path).module.to(memory_format=torch.channels_last)
    net[3].weight = net[2].weight
    net[1].scale.fill_(3)
    compressor.save(net, tmp_path / "m.pt", arch=path if arch else None, input_shape=(3, 8, 8))
    again = compressor.load(tmp_path / "m.pt")
    one, other = ({name: each.stride() for name, each in net_.state_dict().items()} for net_ in (net, again))
    assert one == other
    assert again[3].weight is again[2].weight
    assert again[3].bias is not again[2].bias
    assert torch.equal(again[1].scale, net[1].scale)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert_same_outputs(net, again, 3, 8, 8)


def test_weights_that_are_tied_only_in_the_architecture_are_refused(tmp_path):
    source = """
from torch import nn
def build():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net
"""
    path = nets.write(tmp_path, source)
    net = open_model(None, arch=path).module
    net[1].weight = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ModelError, match="1.weight"):
        compressor.save(net, tmp_path / "m.pt", arch=path)


EXTRA = """
import torch
from torch import nn

class Scaled(nn.Conv2d):
    scale = 1.0
    held = None
    def get_extra_state(self):
        return self.held or {"scale": self.scale, "steps": [(1, torch.ones(2))]}
    def set_extra_state(self, state):
        self.scale = state["scale"]
        self.steps = state["steps"]
    def forward(self, x):
        return super().forward(x) * self.scale

def build():
    return nn.Sequential(Scaled(1, 3, 3), nn.Flatten(), nn.Linear(108, 2))
"""


def test_extra_state_comes_back(tmp_path):
    path = nets.write(tmp_path, EXTRA)
    net = open_model(None, arch=path).module
    net[0].scale = 0.1 + 0.2
    compressor.save(net, tmp_path / "m.pt", arch=path)
    again = compressor.load(tmp_path / "m.pt")
    assert again[0].scale == net[0].scale
    assert again[0].steps[0][0] == 1 and torch.equal(again[0].steps[0][1], torch.ones(2))
    assert_same_outputs(net, again, 1, 8, 8)
    change(tmp_path / "m.pt", lambda header, tensors: header["state"]["0._extra_state"].pop("scale"))
    with pytest.raises(FileError, match="cannot be put into"):
        compressor.load(tmp_path / "m.pt")


def test_extra_state_of_somebodys_state_dict_is_taken_where_it_is_plain(tmp_path):
    source = EXTRA.replace("[(1, torch.ones(2))]", "2").replace("build()", "build(num_classes=2)")
    path = nets.write(tmp_path, source.replace("Linear(108, 2)", "Linear(108, num_classes)"))
    net = open_model(None, arch=path, arch_arguments={"num_classes": 7}).module
    net[0].scale = 3.0
    state = {**net.state_dict(), "loss._extra_state": {"a": 1}}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch=path)
    assert opened.module[0].scale == 3.0
    assert opened.arch.arguments == {"num_classes": 7}
    assert any("loss._extra_state" in note for note in opened.notes)
    state["0._extra_state"] = {"scale": print}
    torch.save(state, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch=path)
    assert opened.module[0].scale == 1.0
    assert any("0._extra_state" in note for note in opened.notes)


def test_extra_state_that_no_file_holds_is_left_out_with_a_word(tmp_path):
    path = nets.write(tmp_path, EXTRA)
    net = open_model(None, arch=path).module
    net[0].held = object()
    with pytest.warns(UserWarning, match="left out of the checkpoint: 0._extra_state is a builtins.object"):
        compressor.save(net, tmp_path / "m.pt", arch=path)
    assert compressor.load(tmp_path / "m.pt")[0].scale == 1.0


@pytest.mark.parametrize("make", [lambda: torch.zeros(2, dtype=torch.complex128), lambda: torch.eye(2).to_sparse()])
def test_tensors_that_no_file_holds_are_named(tmp_path, make):
    net = nn.Sequential(nn.ReLU())
    net[0].register_buffer("odd", make())
    with pytest.raises(ModelError, match="0.odd is a tensor that a file cannot hold") as caught:
        compressor.save(net, tmp_path / "m.pt")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_what_a_run_leaves_on_layers_is_no_structure(tmp_path):
    """A counter that forward makes is not in the file; one that the architecture has comes back."""
    source = """
from torch import nn
class Net(nn.Linear):
    calls = 0
    def __init__(self):
        super().__init__(3, 2)
        self.steps = 0
    def forward(self, x):
        self.calls += 1
        self.steps += 1
        return super().forward(x)
def build(): return Net()
"""
    path = nets.write(tmp_path, source)
    net = open_model(None, arch=path).module
    net(torch.ones(1, 3))
    compressor.save(net, tmp_path / "m.pt", arch=path)
    again = compressor.load(tmp_path / "m.pt")
    assert (again.calls, again.steps) == (0, 1)
