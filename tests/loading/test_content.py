import gzip
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.loading.content import Content, recognise


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()


def saved(value, **options) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def test_torch_save_of_both_formats_is_known_by_content(tmp_path):
    for name, options in [("new.onnx", {}), ("old.txt", {"_use_new_zipfile_serialization": False})]:
        (tmp_path / name).write_bytes(saved(small().state_dict(), **options))
        assert recognise(tmp_path / name) is Content.PICKLE


def test_safetensors_is_known_by_content(tmp_path):
    from safetensors.torch import save_file

    save_file(small().state_dict(), tmp_path / "weights.pt")
    assert recognise(tmp_path / "weights.pt") is Content.SAFETENSORS


def test_exported_program_is_known_by_content(tmp_path):
    torch.export.save(torch.export.export(small(), (torch.zeros(2, 1, 8, 8),)), tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "program.pt")
    assert recognise(tmp_path / "program.pt") is Content.PROGRAM


@pytest.mark.parametrize("producer", ["", "pytorch"])
def test_onnx_is_known_by_content(tmp_path, producer):
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    model = helper.make_model(graph, producer_name=producer, doc_string="text " * 100)
    (tmp_path / "model.pt").write_bytes(model.SerializeToString())
    assert recognise(tmp_path / "model.pt") is Content.ONNX


def zipped(**records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in records.items():
            archive.writestr(name, value)
    return file.getvalue()


NEWER_ZIP = zipped(a=b"").replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"hello, this is a text\n", "is not a model file", id="text"),
        pytest.param(bytes(range(200)), "is not a model file", id="bytes"),
        pytest.param(b"\x08", "is not a model file", id="one byte"),
        pytest.param(b"\x08\x07\x07\xff\xff\xff\xff\x7fabc", "is not a model file", id="other protobuf"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", id="git lfs pointer"),
        pytest.param(b"<!DOCTYPE html><html>", "web page", id="web page"),
        pytest.param(gzip.compress(b"weights"), "unpack it first", id="gzip"),
        pytest.param(b"\x89HDF\r\n\x1a\n", "Keras", id="hdf5"),
        pytest.param(pickle.dumps({"a": 1}), "not one that torch.save wrote", id="plain pickle"),
        pytest.param(zipped(readme=b"text"), "without a PyTorch model", id="other zip"),
        pytest.param(saved({"a": torch.zeros(99)})[:300], "cut off", id="truncated zip"),
        pytest.param(NEWER_ZIP, "damaged", id="zip of a version to come"),
    ],
)
def test_every_other_file_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(FileError, match=says) as caught:
        recognise(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torchscript_is_known_by_content(tmp_path):
    (tmp_path / "script.pt").write_bytes(zipped(**{"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/a.py": b""}))
    assert recognise(tmp_path / "script.pt") is Content.SCRIPT


def test_missing_file_that_is_an_architecture_says_so(tmp_path):
    with pytest.raises(FileError, match=r"there is no file .*absent\.pt$"):
        recognise(tmp_path / "absent.pt")
    (tmp_path / "resnet56-4bfd9763.th").touch()
    with pytest.raises(FileError, match=r"resnet56\.th \(did you mean resnet56-4bfd9763\.th\?\)$"):
        recognise(tmp_path / "resnet56.th")
    with pytest.raises(FileError, match="`arch` torchvision:resnet18"):
        recognise(tmp_path.__class__("torchvision:resnet18"))


def test_a_sample_that_is_not_in_the_folder_is_told_where_it_is(tmp_path, monkeypatch):
    """The pages' commands name it as it lies in a clone; who installed the package is elsewhere."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as caught:
        recognise(Path("sample_models/digits_cnn.safetensors"))
    assert recognise(Path(str(caught.value).rpartition(" is ")[2])) is Content.SAFETENSORS


def test_folder_names_the_model_in_it(tmp_path):
    with pytest.raises(FileError, match="is a folder"):
        recognise(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FileError, match="model.safetensors"):
        recognise(tmp_path)
