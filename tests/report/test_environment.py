"""Where a run took place."""

import platform
import subprocess
import sys

import pytest
import torch

from compressor.report.environment import device_words, versions


def test_versions_name_what_computes() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] is not None and found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"compressor", "torchvision", "onnx", "onnxruntime"} <= set(found)


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
