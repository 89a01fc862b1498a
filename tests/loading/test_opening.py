"""Every kind of file that users have, opened; and every one that does not fit, refused in one line."""

import re
import warnings
import zipfile

import pytest
import torch
from torch import nn
from torch.export import Dim

import compressor
from compressor.errors import FileError, UsageError
from compressor.loading.opening import open_model
from compressor.loading.saving import save_model
from compressor.vision import door as vision
from tests.loading import nets


@pytest.fixture
def arch(tmp_path):
    return nets.write(tmp_path)


@pytest.fixture
def net(arch):
    module = open_model(None, arch=arch).module
    module.norm.running_mean.uniform_()
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def with_prefix(state, *prefixes):
    return {"".join(prefixes) + key: value for key, value in state.items()}


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state},
    "two deep": lambda state: {"checkpoint": 1, "model": {"state_dict": state}},
    "averaged only": lambda state: {"ema": state, "epoch": 1},
    "DataParallel": lambda state: with_prefix(state, "module."),
    "compiled": lambda state: with_prefix(state, "_orig_mod."),
    "compiled DataParallel": lambda state: {"state_dict": with_prefix(state, "module.", "_orig_mod.")},
    "compiled inside": lambda state: {key.replace("conv.", "conv._orig_mod."): value for key, value in state.items()},
    "Lightning": lambda state: {"state_dict": {**with_prefix(state, "model."), "loss.weight": torch.ones(10)}},
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(3), **with_prefix(state, "module.")},
    "before batch norm's counters": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_state_dict_opens_in_whatever_it_is_wrapped(tmp_path, arch, net, wrap):
    torch.save(wrap(net.state_dict()), tmp_path / "m.bin")
    opened = open_model(tmp_path / "m.bin", arch=arch)
    assert same(opened.module, net)
    assert not opened.module.training
    assert opened.input_shape == (1, 8, 8)


def test_safetensors_opens(tmp_path, arch, net):
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "m.safetensors")
    assert same(compressor.load(tmp_path / "m.safetensors", arch=arch), net)


def test_leaving_something_out_is_told(tmp_path, arch, net):
    torch.save({"state_dict": WRAPPED["Lightning"](net.state_dict())["state_dict"]}, tmp_path / "m.pt")
    assert "loss.weight" in open_model(tmp_path / "m.pt", arch=arch).notes[0]


AVERAGED = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "swa.state_dict", "model.ema")


@pytest.mark.parametrize("name", AVERAGED)
def test_one_of_several_sets_of_weights_is_chosen_by_its_keys(tmp_path, arch, net, name):
    averaged = {key: torch.zeros_like(value) for key, value in net.state_dict().items()}
    held = {"model": dict(net.state_dict()), "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    *outer, last = name.split(".")
    (held.setdefault(outer[0], {}) if outer else held)[last] = averaged
    torch.save(held, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch=arch, weights=name)
    assert not any(value.any() for value in opened.module.state_dict().values())
    assert f"the weights under {name} are used; `weights` chooses others: model" in opened.notes[0]
    if name != "model.ema":
        default = open_model(tmp_path / "m.pt", arch=arch)
        assert same(default.module, net)
        assert f"the weights under model are used; `weights` chooses others: {name}" in default.notes[0]
    with pytest.raises(UsageError, match=f"did you mean {name}"):
        open_model(tmp_path / "m.pt", arch=arch, weights=f"{name}s")


def test_several_sets_of_weights_of_unknown_names_are_asked_for(tmp_path, arch, net):
    torch.save({"generator": net.state_dict(), "critic": {"w": torch.ones(2)}}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"`weights` one of.* critic.* generator|`weights` one of generator, critic"):
        open_model(tmp_path / "m.pt", arch=arch)
    assert same(open_model(tmp_path / "m.pt", arch=arch, weights="generator").module, net)
    torch.save({"generator": net.state_dict(), "epoch": 3}, tmp_path / "m.pt")
    assert same(open_model(tmp_path / "m.pt", arch=arch).module, net)


def test_one_set_of_weights_is_not_chosen_from(tmp_path, arch, net):
    torch.save(net.state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match="one set of weights"):
        open_model(tmp_path / "m.pt", arch=arch, weights="ema")


def test_number_of_classes_and_channels_follow_the_file(tmp_path, arch):
    narrow = open_model(None, arch=arch, arch_arguments={"num_classes": 3, "in_channels": 2}).module
    torch.save(narrow.state_dict(), tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch=arch)
    assert opened.arch.arguments == {"num_classes": 3, "in_channels": 2}
    assert opened.input_shape == (2, 8, 8)
    assert "num_classes=3" in opened.notes[0]


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "timm:resnet10t"])
def test_number_of_classes_follows_the_file_for_published_architectures(tmp_path, name):
    torch.save(open_model(None, arch=f"{name}:num_classes=7").module.state_dict(), tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch=name)
    assert opened.arch.arguments == {"num_classes": 7}
    assert opened.preparation is None  # 7 classes are not the published ones: nobody knows how they were normalised


def test_classifiers_for_training_only_may_be_missing(tmp_path):
    whole = vision.build("googlenet", num_classes=3)
    state = {key: value for key, value in whole.state_dict().items() if not key.startswith("aux")}
    torch.save(state, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch="torchvision:googlenet")
    assert opened.arch.arguments == {"num_classes": 3, "aux_logits": False}


def test_published_classes_are_built_as_published(tmp_path):
    torch.save(vision.build("googlenet").state_dict(), tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch="torchvision:googlenet")
    assert opened.module.transform_input
    assert "transform_input=True" in opened.notes[0]
    explicit = open_model(tmp_path / "m.pt", arch="torchvision:googlenet:transform_input=False")
    assert not explicit.module.transform_input


def test_old_names_of_published_weights_fit(tmp_path):
    net = vision.build("densenet121", num_classes=2)
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")
    torch.save({old.sub(r"\1.\2", key): value for key, value in net.state_dict().items()}, tmp_path / "m.pt")
    assert same(compressor.load(tmp_path / "m.pt", arch="torchvision:densenet121"), net)


def test_layers_that_insist_on_their_version_open_from_safetensors(tmp_path):
    from safetensors.torch import save_file

    net = vision.build("mnasnet0_5", num_classes=2)
    save_file(net.state_dict(), tmp_path / "m")
    assert same(compressor.load(tmp_path / "m", arch="torchvision:mnasnet0_5"), net)


def test_published_classes_bring_their_normalisation(tmp_path):
    torch.save(vision.build("squeezenet1_1").state_dict(), tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch="torchvision:squeezenet1_1")
    assert opened.preparation.mean == pytest.approx((0.485, 0.456, 0.406))
    assert opened.input_shape == (3, 224, 224)


def test_pickled_module_opens_without_arch(tmp_path):
    module = nn.DataParallel(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout())).train()
    torch.save(module, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt")
    assert type(opened.module) is nn.Sequential
    assert not opened.module.training
    assert opened.arch is None


def test_pickled_module_gives_its_weights_to_an_architecture(tmp_path):
    module = vision.build("squeezenet1_1", num_classes=3)
    torch.save({"model": module}, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch="torchvision:squeezenet1_1")
    assert same(opened.module, module)
    assert opened.arch.arguments == {"num_classes": 3}


def test_half_precision_is_opened_as_float32_and_said(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)).half(), tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt")
    assert opened.module[0].weight.dtype is torch.float32
    assert "float16" in opened.notes[0]


def test_architecture_alone_has_random_weights_and_says_so(arch):
    opened = open_model(None, arch=arch, input_shape=(1, 16, 16))
    assert "random weights" in opened.notes[0]
    assert opened.input_shape == (1, 16, 16)


def test_nothing_given_is_wrong_use():
    with pytest.raises(UsageError, match="`arch`"):
        open_model(None)


def test_weights_without_arch_say_what_is_missing(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"9 tensors.*conv\.weight.*`arch`"):
        open_model(tmp_path / "m.pt")


def refused(path, **options) -> str:
    with pytest.raises(FileError) as caught:
        open_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_weights_that_do_not_fit_say_which(tmp_path, arch, net):
    state = net.state_dict()
    state["conv.weight"] = torch.zeros(4, 1, 5, 5)
    state["other.weight"] = state.pop("head.weight")
    torch.save(state, tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt", arch=arch)
    assert "1 missing: head.weight" in message
    assert "1 not known to it: other.weight" in message
    assert "conv.weight (4x1x5x5 in the file, 8x1x3x3 in the architecture)" in message


def test_names_in_a_file_cannot_break_the_line(tmp_path, arch):
    torch.save({"a\nb\x1b[2J": torch.zeros(2), "c" * 9999: torch.zeros(2)}, tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt", arch=arch)
    assert message.isprintable()
    assert len(message) < 900


def test_weights_of_another_network_name_only_a_few(tmp_path):
    torch.save(vision.build("squeezenet1_1").state_dict(), tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt", arch="torchvision:resnet18")
    assert "and" in message and "more" in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("held", "says"),
    [
        pytest.param([1, 2], "holds a list", id="list"),
        pytest.param({}, "nothing", id="empty dict"),
        pytest.param({"epoch": 3, "loss": 0.1}, "only epoch, loss", id="no weights"),
        pytest.param(torch.zeros(3), "holds a Tensor", id="tensor"),
        pytest.param({"state_dict": {"w": torch.zeros(2, device="meta")}}, "without values", id="meta"),
        pytest.param({"state_dict": {"w": torch.eye(2).to_sparse()}}, "sparse", id="sparse"),
    ],
)
def test_files_without_a_model_are_refused(tmp_path, arch, held, says):
    torch.save(held, tmp_path / "m.pt")
    assert says in refused(tmp_path / "m.pt", arch=arch)


def test_dict_that_holds_itself_is_refused(tmp_path, arch):
    held: dict = {"epoch": 1}
    held["model"] = held
    torch.save(held, tmp_path / "m.pt")
    assert "no weights" in refused(tmp_path / "m.pt", arch=arch)


def test_values_on_the_meta_device_are_no_weights(tmp_path, arch, net):
    torch.save(net.to("meta").state_dict(), tmp_path / "m.pt")
    assert "without values" in refused(tmp_path / "m.pt", arch=arch)
    torch.save(nn.Linear(2, 2, device="meta"), tmp_path / "m.pt")
    assert "without values" in refused(tmp_path / "m.pt")


def test_module_without_its_parts_is_refused(tmp_path):
    module = nn.Linear(2, 2)
    del module.__dict__["_parameters"]
    torch.save(module, tmp_path / "m.pt")
    assert "not a model" in refused(tmp_path / "m.pt")


def test_one_flipped_bit_in_the_weights_is_seen(tmp_path, arch, net):
    torch.save(net.state_dict(), tmp_path / "m.pt")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    weight = net.conv.weight.detach().numpy().tobytes()
    data[data.index(weight) + 5] ^= 1
    (tmp_path / "m.pt").write_bytes(data)
    assert "damaged" in refused(tmp_path / "m.pt", arch=arch)


def test_cut_safetensors_is_refused(tmp_path, arch, net):
    from safetensors.torch import save

    (tmp_path / "m.pt").write_bytes(save(net.state_dict())[:-10])
    assert "damaged" in refused(tmp_path / "m.pt", arch=arch)


def test_onnx_says_what_takes_it(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07\x12\x01x\x3a\x00")
    assert "compressor.load" in refused(tmp_path / "m.onnx")


@pytest.mark.parametrize("shape", [(), (3, 0, 4), (3, -1, 2), ("3", 2, 2)])
def test_input_shape_is_checked(arch, shape):
    with pytest.raises(UsageError, match="channels, height, width"):
        open_model(None, arch=arch, input_shape=shape)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.fixture(params=["program", "script"])
def written(request, tmp_path):
    """A module and the file that torch wrote of it, under a name that says nothing."""
    module, path = small(), tmp_path / "m.bin"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "program":
            program = torch.export.export(module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: Dim.DYNAMIC},))
            torch.export.save(program, tmp_path / "m.pt2")
            (tmp_path / "m.pt2").rename(path)
        else:
            torch.jit.script(module).save(path)
    return module, path


def test_nothing_is_read_without_trust(written, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("it was read")

    for name in ("torch.export.load", "torch.jit.load", "torch.load", "zipfile.ZipFile.open"):
        monkeypatch.setattr(name, refused)
    with pytest.raises(FileError, match=r"opening one runs what it holds.*`trust`.*`arch`"):
        open_model(written[1])


def test_it_opens_on_trust_and_computes_the_same(written):
    module, path = written
    opened = open_model(path, trust=True)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(opened.module(x), module(x))
    assert opened.arch is None


def test_it_gives_its_weights_to_an_architecture(written, tmp_path):
    module, path = written
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]\n"
        "    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 3))\n"
    )
    opened = open_model(path, arch=f"{tmp_path / 'net.py'}:build", trust=True)
    x = torch.rand(3, 1, 8, 8)
    assert type(opened.module) is nn.Sequential
    assert torch.equal(opened.module(x), module(x))


def test_no_checkpoint_of_it_is_written_without_an_architecture(written, tmp_path):
    with pytest.raises(UsageError, match="`arch`"):
        save_model(open_model(written[1], trust=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_torch_says_of_a_broken_one_is_one_line(written, tmp_path):
    broken = tmp_path / "broken"
    with zipfile.ZipFile(written[1]) as source, zipfile.ZipFile(broken, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, b"\x1b[31m" if name.endswith((".json", "data.pkl")) else source.read(name))
    with pytest.raises(FileError) as caught:
        open_model(broken, trust=True)
    assert str(caught.value).isprintable()
