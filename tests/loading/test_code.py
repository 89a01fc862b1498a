"""A checkpoint may name a file of code; whether it runs is up to who sits at the keyboard."""

from pathlib import Path

import pytest

import compressor
from compressor.errors import UsageError
from compressor.loading import code
from compressor.loading.opening import open_model
from compressor.loading.saving import save_model
from tests.loading import nets
from tests.loading.checkpoints import change


def checkpoint(folder: Path) -> Path:
    """A checkpoint made elsewhere: its architecture was named there, and not on this machine."""
    arch = nets.write(folder)
    compressor.save(open_model(None, arch=arch).module, folder / "model.safetensors", arch=arch)
    return folder / "model.safetensors"


def test_file_named_before_opens_again(tmp_path):
    assert compressor.load(checkpoint(tmp_path)).head.out_features == 10


def test_file_is_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    nets.write(tmp_path)
    opened = open_model(None, arch="net.py:build")
    save_model(opened, tmp_path / "runs" / "one" / "model.safetensors")
    monkeypatch.chdir("/")
    again = open_model(tmp_path / "runs" / "one" / "model.safetensors")
    assert again.arch.name == f"{tmp_path / 'net.py'}:build"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another person"))
    with pytest.raises(UsageError, match="never named"):
        compressor.load(tmp_path / "runs" / "one" / "model.safetensors")


def test_file_never_named_here_is_not_run(tmp_path, monkeypatch):
    path = checkpoint(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another person"))
    with pytest.raises(UsageError, match=r"never named on this machine.*`arch` .*net\.py:build"):
        compressor.load(path)
    assert compressor.load(path, arch=nets.write(tmp_path))
    assert compressor.load(path)


def test_same_file_elsewhere_is_another_file(tmp_path):
    """Someone's folder with a copy of a file that was named once, and other code beside it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    nets.write(tmp_path / "mine")
    nets.write(tmp_path / "theirs")
    name = f"{tmp_path / 'theirs' / 'net.py'}:build"
    mine, theirs = checkpoint(tmp_path / "mine"), tmp_path / "theirs" / "model.safetensors"
    change(mine, lambda header, _: header["arch"].update(name=name), theirs)
    with pytest.raises(UsageError, match="never named"):
        compressor.load(tmp_path / "theirs" / "model.safetensors")


def test_another_function_of_a_known_file_is_not_run(tmp_path):
    path = checkpoint(tmp_path)
    change(path, lambda header, _: header["arch"].update(name=header["arch"]["name"].replace(":build", ":fails")))
    with pytest.raises(UsageError, match="never named"):
        compressor.load(path)


def test_changed_file_is_not_run_until_named(tmp_path):
    path = checkpoint(tmp_path)
    arch = nets.write(tmp_path, nets.SOURCE + "\nCHANGED = True\n")
    with pytest.raises(UsageError, match="has changed since"):
        compressor.load(path)
    opened = open_model(path, arch=arch)
    assert "not the code that the checkpoint was written with" in opened.notes[0]


def test_removed_file_is_named(tmp_path):
    path = checkpoint(tmp_path)
    (tmp_path / "net.py").unlink()
    with pytest.raises(UsageError, match="is not there"):
        compressor.load(path)


def test_trust_opens_what_was_never_named(tmp_path, monkeypatch):
    path = checkpoint(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another person"))
    assert compressor.load(path, trust=True)


def test_home_that_cannot_be_written_only_forgets(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    code.remember(tmp_path / "net.py", "build", "0" * 64)
    assert not code.is_known(tmp_path / "net.py", "build", "0" * 64)


def test_damaged_store_is_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "compressor").mkdir()
    (tmp_path / "compressor" / "architectures.json").write_text("[[")
    assert not code.is_known(tmp_path / "net.py", "build", "0" * 64)
    code.remember(tmp_path / "net.py", "build", "0" * 64)
    assert code.is_known(tmp_path / "net.py", "build", "0" * 64)
