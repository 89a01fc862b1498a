"""Importing the package and asking for help must not wait for torch."""

import os
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


def test_help_answers_without_torch():
    code = "import sys; sys.argv = ['compressor', '--help']\nfrom compressor.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    assert heavy_modules_after(code) == "[]"


def test_help_answers_in_half_a_second():
    seconds = []
    for _ in range(3):  # the processor's time, of which a busy machine takes nothing away; the best of three
        before = sum(os.times()[2:4])
        subprocess.run([sys.executable, "-m", "compressor", "--help"], capture_output=True, check=True)
        seconds.append(sum(os.times()[2:4]) - before)
    assert min(seconds) < 0.5
