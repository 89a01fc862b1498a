"""Exported programs and TorchScript: nothing of them is read unless the user trusts them."""

import warnings
import zipfile

import pytest
import torch
from torch import nn
from torch.export import Dim

from compressor.errors import FileError, UsageError
from compressor.loading.opening import open_model
from compressor.loading.saving import save_model


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
    with pytest.raises(FileError, match=r"opening one runs what it holds.*--trust.*--arch"):
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
    with pytest.raises(UsageError, match="--arch"):
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
