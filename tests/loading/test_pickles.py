"""What a pickle may do: the proof that opening a file runs nobody's code, and still finds the weights."""

import argparse
import collections
import io
import os
import subprocess
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.loading.opening import open_model
from compressor.loading.pickles import is_network, read_pickle, rebuilt, skeleton, tensor_of
from compressor.loading.saving import save_model
from compressor.loading.stand_ins import StandIn
from compressor.loading.weights import find_weights
from compressor.vision import door as vision

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
both_formats = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.register_buffer("scale", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.conv(x)


class Calls:
    """Pickles as a call of `function`, with a state and items in it."""

    def __init__(self, function, *arguments, state=None, items=()):
        self.call = (function, arguments, state, None, iter(items))

    def __reduce__(self):
        return self.call


class Config(dict):
    """A dict of somebody's class, as omegaconf and the like have."""


def state_of(path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled network."""
    return skeleton(read_pickle(path), path).state_dict()


def with_pickle(path, pickled: bytes) -> None:
    """A file of torch.save's form whose pickle is `pickled`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf"])
def test_networks_of_torchvision_open_and_compute_the_same(tmp_path, name):
    module = vision.build(name, num_classes=3).eval()
    torch.save(module, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt").module
    x = torch.rand(1, 3, 64, 64)
    assert type(opened) is type(module)
    with torch.no_grad():
        assert torch.equal(opened(x), module(x))


@pytest.mark.parametrize(("name", "options"), [("vit_tiny_patch16_224", {"img_size": 32}), ("fasternet_t0", {})])
def test_networks_of_timm_open_and_compute_the_same(tmp_path, name, options):
    timm = pytest.importorskip("timm")
    module = timm.create_model(name, num_classes=3, **options).eval()
    torch.save(module, tmp_path / "m.pt")
    opened, x = open_model(tmp_path / "m.pt"), torch.rand(1, 3, 32, 32)
    save_model(opened, tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(opened.module(x), module(x))
        assert torch.equal(open_model(tmp_path / "m.safetensors").module(x), module(x))


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda module: {"epoch": 3, "model": module}],
    ids=["DataParallel", "AveragedModel", "dict"],
)
def test_network_opens_in_what_it_is_wrapped_in(tmp_path, wrap):
    torch.save(wrap(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout())), tmp_path / "m.pt")
    assert type(open_model(tmp_path / "m.pt").module) is nn.Sequential


def test_none_of_the_functions_that_torch_allows_is_ever_looked_up(tmp_path, monkeypatch):
    def refused():
        raise AssertionError("torch's own list was asked")

    for name in ("_get_allowed_globals", "_get_user_allowed_globals"):
        monkeypatch.setattr(torch._weights_only_unpickler, name, refused)
    torch.save(nn.Sequential(Block()), tmp_path / "m.pt")
    assert list(state_of(tmp_path / "m.pt")) == ["0.conv.weight", "0.conv.bias"]


@both_formats
@pytest.mark.parametrize(
    "call",
    [
        Calls(subprocess.check_call, ["touch", "{}"]),
        Calls(eval, "open('{}', 'w')"),
        Calls(getattr, "text", "upper"),
        Calls(torch.hub.load, "somebody/something", "model"),
        Calls(torch.load, "{}"),
        Calls(vision.models.get_model, "resnet18"),
        Calls(bytearray, 10**12),
    ],
    ids=["subprocess", "eval", "getattr", "hub", "torch.load", "get_model", "bytearray"],
)
def test_functions_are_stand_ins_and_the_weights_beside_them_are_read(tmp_path, call, options):
    witness = tmp_path / "witness"
    function, arguments, *_ = call.call
    arguments = tuple(each.format(witness) if isinstance(each, str) else each for each in arguments)
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Calls(function, *arguments)}, tmp_path / "m.pt", **options)
    found = read_pickle(tmp_path / "m.pt")
    assert torch.equal(tensor_of(found["state_dict"]["w"]), torch.ones(2))
    assert isinstance(found["x"], StandIn)
    assert not witness.exists()


@pytest.mark.parametrize(
    "call", [Calls(os.system, "true"), Calls(torch.empty, 10**12)], ids=["blocked", "called twice"]
)
def test_what_torch_does_not_take_a_stand_in_for_is_refused(tmp_path, call):
    torch.save({"w": torch.ones(2), "x": call}, tmp_path / "m.pt")
    with pytest.raises(FileError, match="without running code"):
        read_pickle(tmp_path / "m.pt")


def test_classes_that_others_allowed_are_stand_ins_too(tmp_path):
    torch.save({"w": torch.ones(1), "x": Calls(Block)}, tmp_path / "m.pt")
    with torch.serialization.safe_globals([Block]):
        assert isinstance(read_pickle(tmp_path / "m.pt")["x"], StandIn)
        assert Block in torch.serialization.get_safe_globals()


def test_network_of_the_old_format_is_refused_and_its_state_dict_is_not(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2))
    torch.save(module, tmp_path / "m.pt", **FORMATS["legacy"])
    with pytest.raises(FileError, match=r"torch before 1\.6.*`trust`"):
        read_pickle(tmp_path / "m.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert isinstance(read_pickle(tmp_path / "m.pt", trust=True), nn.Sequential)
    torch.save(module.state_dict(), tmp_path / "m.pt", **FORMATS["legacy"])
    assert torch.equal(tensor_of(read_pickle(tmp_path / "m.pt")["0.weight"]), module[0].weight)


def test_users_class_gives_its_tensors_or_opens_on_trust(tmp_path):
    module = nn.Sequential(Block(), nn.Linear(2, 2))
    module[1].weight = nn.Parameter(torch.rand(2, 2, dtype=torch.bfloat16))
    torch.save(module, tmp_path / "m.pt")
    found = read_pickle(tmp_path / "m.pt")
    assert is_network(found)
    state, expected = state_of(tmp_path / "m.pt"), module.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], each) and state[name].dtype == each.dtype for name, each in expected.items())
    with pytest.raises(FileError, match=rf"0 is a {__name__}\.Block.*it asks for .*`arch` FILE.py:FUNCTION.*`trust`"):
        rebuilt(found, tmp_path / "m.pt")
    assert type(read_pickle(tmp_path / "m.pt", trust=True)[0]).__name__ == "Block"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.register_forward_hook(print), r"_forward_hooks.*`arch` torchvision:squeezenet1_1"),
        (lambda m: vars(m).update(forward=nn.Identity), r"forward.*`arch` torchvision:squeezenet1_1"),
        (lambda m: m.features.append(Block()), r"features\.13 is .*Block.*`arch` FILE\.py"),
    ],
)
def test_message_names_what_is_in_the_way_and_the_architecture_that_fits(tmp_path, change, says):
    module = vision.build("squeezenet1_1", num_classes=2)
    change(module)
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(FileError, match=says):
        open_model(tmp_path / "m.pt")
    assert len(state_of(tmp_path / "m.pt")) >= len(vision.build("squeezenet1_1").state_dict())


@pytest.mark.slow
def test_architecture_of_the_right_width_is_named(tmp_path):
    module = vision.build("wide_resnet50_2", num_classes=2)  # the names of its tensors are ResNet-50's
    module.register_forward_hook(print)
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(FileError, match="`arch` torchvision:wide_resnet50_2"):
        open_model(tmp_path / "m.pt")


def test_architecture_of_timm_is_named(tmp_path):
    timm = pytest.importorskip("timm")
    module = timm.create_model("fasternet_t0")
    module.register_forward_hook(print)
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(FileError, match="`arch` timm:fasternet_t0"):
        open_model(tmp_path / "m.pt")


def test_dict_that_shadows_its_methods_hides_nothing(tmp_path):
    """A check that asks the dict itself would find no hooks in it."""
    module = nn.Sequential(nn.Linear(2, 2))
    shadows = {"items": dict, "values": list, "keys": list, "get": dict, "__len__": int}
    hooks = Calls(collections.OrderedDict, state=shadows, items=[(0, nn.Identity)])
    vars(module[0])["_forward_hooks"] = hooks
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(FileError, match="_forward_hooks"):
        open_model(tmp_path / "m.pt")


def test_attributes_of_a_tensor_are_left_out(tmp_path):
    weight = torch.ones(2)
    weight.detach, weight.numel = nn.Identity, nn.ReLU
    torch.save({"w": weight, "v": nn.Parameter(weight)}, tmp_path / "m.pt")
    for stored in read_pickle(tmp_path / "m.pt").values():
        assert not {"detach", "numel"} & vars(tensor_of(stored)).keys()


def test_tensors_of_every_form_are_read(tmp_path):
    base = torch.arange(24.0)
    held = {
        "view": base[3:9].view(2, 3),
        "transposed": base.view(4, 6).t(),
        "channels_last": torch.rand(1, 2, 3, 3).contiguous(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(5),
        "number": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "half": torch.rand(3).half(),
        "bool": torch.tensor([True, False]),
        "float8": torch.rand(4).to(torch.float8_e4m3fn),
        "parameter": nn.Parameter(torch.rand(2), requires_grad=False),
        "buffer": nn.Buffer(torch.rand(2)),
    }
    for options in FORMATS.values():
        torch.save(held, tmp_path / "m.pt", **options)
        for name, stored in read_pickle(tmp_path / "m.pt").items():
            found = tensor_of(stored)
            assert torch.equal(found.float(), held[name].float()), name
            assert found.stride() == held[name].stride() and found.dtype == held[name].dtype


def test_tied_tensors_stay_tied(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    torch.save(module, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt").module
    assert opened[1].weight is opened[0].weight
    torch.save(module.state_dict(), tmp_path / "m.pt")
    found = read_pickle(tmp_path / "m.pt")
    assert tensor_of(found["0.weight"]).data_ptr() == tensor_of(found["1.weight"]).data_ptr()


def test_training_records_beside_the_weights_are_left_out(tmp_path):
    held = {
        "state_dict": {"w": torch.ones(2)},
        "best": np.float64(0.9),
        "curve": np.zeros(3),
        "args": argparse.Namespace(lr=0.1, folder=tmp_path),
        "history": collections.defaultdict(list, loss=[1.0]),
        "counts": collections.Counter("abc"),
        "sparse": torch.eye(3).to_sparse(),
        "epoch": 3,
    }
    torch.save(held, tmp_path / "m.pt")
    found = read_pickle(tmp_path / "m.pt")
    assert torch.equal(tensor_of(found["state_dict"]["w"]), torch.ones(2))
    assert found["epoch"] == 3
    assert all(isinstance(found[name], StandIn) for name in ("best", "curve", "args", "counts"))


@both_formats
def test_weights_in_dicts_of_any_class_are_found(tmp_path, options):
    held = collections.OrderedDict(config=Config(weights=Config({"w": torch.ones(2)})))
    torch.save(held, tmp_path / "m.pt", **options)
    found, _ = find_weights(read_pickle(tmp_path / "m.pt"), tmp_path / "m.pt")
    assert torch.equal(found["w"], torch.ones(2))


def damaged(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {"half": data[:middle], "head": data[:100], "flipped": data[:80] + bytes(80) + data[160:]}


@both_formats
@pytest.mark.parametrize("how", ["half", "head", "flipped"])
def test_damaged_files_are_one_line(tmp_path, options, how):
    file = io.BytesIO()
    torch.save(nn.Linear(50, 50).state_dict(), file, **options)
    (tmp_path / "m.pt").write_bytes(damaged(file.getvalue())[how])
    for trust in (False, True):
        with pytest.raises(FileError) as caught:
            [tensor_of(each) for each in read_pickle(tmp_path / "m.pt", trust=trust).values()]
        assert "\n" not in str(caught.value)


def test_file_written_without_checksums_opens(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(tensor_of(read_pickle(tmp_path / "m.pt")["w"]), torch.ones(2))


def test_compressed_archive_is_refused(tmp_path):
    torch.save({"w": torch.ones(200)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive, zipfile.ZipFile(tmp_path / "c.pt", "w", 8) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(FileError, match="compressed"):
        read_pickle(tmp_path / "c.pt")


def test_trust_without_the_code_says_what_is_missing(tmp_path):
    with_pickle(tmp_path / "m.pt", b"\x80\x02cno_such_module\nNet\n.")
    with pytest.raises(FileError, match=r"no_such_module.*FILE\.py:build"):
        read_pickle(tmp_path / "m.pt", trust=True)
