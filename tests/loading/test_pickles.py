"""What a pickle may ask for: the proof that opening a file runs nobody's code."""

import argparse
import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from compressor import vision
from compressor.errors import FileError
from compressor.loading.instructions import Survey
from compressor.loading.pickles import is_own_to_torch, pickled_globals, read_pickle

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def with_pickle(path, pickled: bytes) -> None:
    """A file of torch.save's form whose pickle is `pickled`."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in records.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else value)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_modules_of_torchvision_open(tmp_path, name):
    module = vision.build(name, num_classes=3).eval()
    torch.save(module, tmp_path / "module.pt")
    opened = read_pickle(tmp_path / "module.pt")
    assert type(opened) is type(module)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(opened.eval()(x), module(x))


def test_module_of_the_old_format_needs_trust(tmp_path):
    # torch before 1.6 put each layer's source code beside it, which the restricted reader does not know.
    torch.save(nn.Sequential(nn.ReLU()), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FileError, match="--trust"):
        read_pickle(tmp_path / "m.pt")
    assert isinstance(read_pickle(tmp_path / "m.pt", trust=True), nn.Sequential)


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_users_class_is_refused_with_its_name_and_opened_on_trust(tmp_path, options):
    torch.save(Net(), tmp_path / "net.pt", **options)
    with pytest.raises(FileError, match=rf"{Net.__module__}\.Net.*--trust"):
        read_pickle(tmp_path / "net.pt")
    assert type(read_pickle(tmp_path / "net.pt", trust=True)).__name__ == "Net"


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch {}"),
        Calls(subprocess.check_call, ["touch", "{}"]),
        Calls(eval, "open('{}', 'w')"),
        Calls(getattr, nn.ReLU, "forward"),
        Calls(torch.hub.load, "somebody/something", "model"),
        Calls(torch.load, "{}"),
        Calls(vision.models.resnet18),
        Calls(vision.models.get_model, "resnet18"),
        Calls(nn.init.zeros_, 1),
    ],
    ids=["os.system", "subprocess", "eval", "getattr", "hub", "torch.load", "builder", "get_model", "nn.init"],
)
def test_functions_are_never_called(tmp_path, call, options):
    witness = tmp_path / "witness"
    function, arguments = call.call
    arguments = tuple(each.format(witness) if isinstance(each, str) else each for each in arguments)
    torch.save({"state_dict": {"w": torch.zeros(2)}, "x": Calls(function, *arguments)}, tmp_path / "m.pt", **options)
    with pytest.raises(FileError, match="asks for"):
        read_pickle(tmp_path / "m.pt")
    assert not witness.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"ctorch.nn.modules.module\nos.system\n",  # dotted: an attribute of what a module imported
        b"ctorch.nn.modules.linear\nmath\n",  # imported there, and no class
        b"ctorch.nn.modules.linear\nTensor\n",  # a class, but of elsewhere
        b"ctorch.nn.modules.conv\nF.conv2d\n",
        b"ctorch.nn.modules.linear\nModule\n",  # a network class under another module's name
        b"ctorchvision.models._api\nget_model\n",
        b"ctorchvision.models.resnet\nresnet18\n",
        b"ctorchvision.models.resnet\nResNet.forward\n",
        b"ctorch.nn.modules.linear.Linear\n__init__\n",
        b"ctorch.fx.graph_module\nreduce_graph_module\n",
        b"ctorch.nn.modules.antigravity\nFly\n",
        b"cposix\nsystem\n",
    ],
)
def test_names_hidden_behind_allowed_packages_are_refused(tmp_path, name):
    with_pickle(tmp_path / "m.pt", b"\x80\x02" + name + b"X\x04\x00\x00\x00true\x85R.")
    with pytest.raises(FileError):
        read_pickle(tmp_path / "m.pt")
    assert "antigravity" not in sys.modules


def test_torch_refuses_what_the_listing_does_not_see(tmp_path, monkeypatch):
    """The survey chooses which classes are let in; torch's own reader is what holds the door."""
    torch.save(Calls(os.system, "true"), tmp_path / "m.pt")
    monkeypatch.setattr("compressor.loading.pickles._survey", lambda file, sizes: Survey())
    with pytest.raises(FileError, match="without running code"):
        read_pickle(tmp_path / "m.pt")


def test_allowed_classes_do_not_stay_allowed(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.pt")
    before = set(torch.serialization.get_safe_globals())
    read_pickle(tmp_path / "m.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_other_protocols_are_listed_and_refused(tmp_path):
    for protocol in (3, 4, 5):
        torch.save({"net": Net(), "call": Calls(os.system, "true")}, tmp_path / "m.pt", pickle_protocol=protocol)
        assert {"posix.system", f"{Net.__module__}.Net"} <= set(pickled_globals(tmp_path / "m.pt"))
        with pytest.raises(FileError):
            read_pickle(tmp_path / "m.pt")


def test_training_records_beside_the_weights_are_left_out(tmp_path):
    held = {
        "state_dict": {"w": torch.ones(2)},
        "best": np.float64(0.9),
        "curve": np.zeros(3),
        "args": argparse.Namespace(lr=0.1, folder=tmp_path),
        "epoch": 3,
    }
    torch.save(held, tmp_path / "m.pt")
    opened = read_pickle(tmp_path / "m.pt")
    assert torch.equal(opened["state_dict"]["w"], torch.ones(2))
    assert opened["epoch"] == 3
    assert not hasattr(opened["args"], "lr")


def damaged(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {"half": data[:middle], "head": data[:100], "flipped": data[:80] + bytes(80) + data[160:]}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("how", ["half", "head", "flipped"])
def test_damaged_files_are_one_line(tmp_path, options, how):
    file = io.BytesIO()
    torch.save(nn.Linear(50, 50).state_dict(), file, **options)
    (tmp_path / "m.pt").write_bytes(damaged(file.getvalue())[how])
    for trust in (False, True):
        with pytest.raises(FileError) as caught:
            read_pickle(tmp_path / "m.pt", trust=trust)
        assert "\n" not in str(caught.value)


def test_length_beyond_all_memory_is_damage(tmp_path):
    file = io.BytesIO()
    torch.save({"a": 1}, file, _use_new_zipfile_serialization=False)
    (tmp_path / "m.pt").write_bytes(file.getvalue()[:15] + b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f")
    with pytest.raises(FileError, match="damaged"):
        read_pickle(tmp_path / "m.pt")


def test_trust_without_the_code_says_what_is_missing(tmp_path):
    with_pickle(tmp_path / "m.pt", b"\x80\x02cno_such_module\nNet\n.")
    with pytest.raises(FileError, match=r"no_such_module.*FILE\.py:build"):
        read_pickle(tmp_path / "m.pt", trust=True)


def test_own_to_torch_holds_for_all_layers():
    assert is_own_to_torch(vision.build("resnet18"))
    assert not is_own_to_torch(nn.Sequential(nn.ReLU(), Net()))


def test_plain_pickle_inside_is_read_with_python_names(tmp_path):
    assert pickle.dumps(set(), 2)  # Python 2's name for it, __builtin__, is what protocol 2 writes
    torch.save({"names": {"a"}}, tmp_path / "m.pt")
    assert read_pickle(tmp_path / "m.pt") == {"names": {"a"}}
