"""Where a run took place."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compressor
from compressor.report.environment import VERSION, device_words, versions


def test_versions_name_what_computes() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] is not None and found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"compressor", "torchvision", "onnx", "onnxruntime"} <= set(found)


def test_the_version_needs_no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found where the package lies without its metadata, or under an older name."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: pytest.fail(name) if "compressor" in name else "1")
    assert versions()["compressor"] == compressor.__version__ == VERSION
    assert f"## [{VERSION}]" in (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")


def test_reading_a_report_imports_no_torch() -> None:
    code = "import compressor.report.report, compressor.report.environment as e, sys; e.versions(); "
    code += "assert not {'torch', 'onnx', 'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cpu_is_named_with_its_threads() -> None:
    words = device_words("cpu")
    assert words.startswith("CPU: ") and "core" in words
    assert f"{torch.get_num_threads()} thread" in words


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_is_named() -> None:
    assert torch.cuda.get_device_name(0) in device_words("cuda:0")
