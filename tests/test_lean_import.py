"""Importing the package and asking for help must not wait for torch."""

import subprocess
import sys

import pytest

import compressor
from compressor.errors import FileError

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "sklearn", "matplotlib", "scipy", "timm")


def heavy_modules_after(code: str) -> str:
    ask = f"{code}\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1]


def test_import_of_the_package_is_lean():
    code = "import compressor; compressor.FileError; compressor.__version__; dir(compressor)"
    assert heavy_modules_after(code) == "[]"


def test_public_names_are_there_on_first_use():
    assert compressor.FileError is FileError
    for name in compressor.__all__:
        assert callable(getattr(compressor, name))
    assert {"load", "save", "profile", "prune_", "FileError", "__version__"} <= set(dir(compressor))


def test_other_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune_all'"):
        _ = compressor.prune_all
