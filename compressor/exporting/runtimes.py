"""The runtimes that a package can be written for: one row each, and one file that writes a network for it."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, first_line
from compressor.exporting.onnx import quiet, root_of


@dataclass(frozen=True)
class Runtime:
    """How a network is written for a runtime, and what that can do. `exporting/run.py` opens what was written."""

    name: str
    title: str
    suffix: str  # of its files
    packages: tuple[str, ...]  # that it is imported by; the extra in pyproject has the runtime's name
    writer: str | None = None  # the file with `write`, or `convert`; None: the ONNX graphs are what it takes
    made_with: tuple[str, ...] = ()  # packages whose versions the manifest names
    graph: bool = False  # it is written from the ONNX graphs, with their branches
    int8: bool = True


RUNTIMES: dict[str, Runtime] = {
    each.name: each
    for each in (
        Runtime("onnx", "ONNX Runtime", ".onnx", ("onnxruntime",), None, ("onnx", "onnxruntime"), graph=True),
        Runtime("openvino", "OpenVINO", ".xml", ("openvino",), "to_openvino", ("onnx", "openvino"), graph=True),
        Runtime(
            "litert",
            "LiteRT",
            ".tflite",
            ("ai_edge_litert", "litert_torch"),
            "to_litert",
            ("litert-torch", "ai-edge-litert"),
        ),
        Runtime("executorch", "ExecuTorch", ".pte", ("executorch", "torchao"), "to_executorch", ("executorch",)),
        Runtime("ncnn", "ncnn", ".param", ("ncnn", "pnnx"), "to_ncnn", ("ncnn", "pnnx"), int8=False),
        Runtime("torch", "plain PyTorch", ".py", ("torch",), "to_torch", ("safetensors",), int8=False),
    )
}


def check_runtime(name: str, *, int8: bool = False) -> Runtime:
    """The row of a runtime. Raises UsageError where it is not installed, or has no INT8."""
    runtime = RUNTIMES[name]
    missing = [package for package in runtime.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"{runtime.title} is not installed ({', '.join(missing)} missing): pip install 'cnn-compressor[{name}]'"
        )
    if int8 and not runtime.int8:
        others = ", ".join(each.name for each in RUNTIMES.values() if each.int8)
        raise UsageError(f"{runtime.title} cannot quantize from Python: leave `precision` out, or export to {others}")
    return runtime


def write(runtime: Runtime, module: nn.Module, samples: Tensor, target: Path, *, int8: bool) -> None:
    """Write a module in evaluation mode for a runtime; `samples` (the batch first) are what it is called with, and what
    a quantizer is calibrated on.

    Raises ModelError, which names the operator where the runtime lacks one.
    """
    _tried(runtime, "write", module, samples, target, int8)


def convert(runtime: Runtime, graph: Path, target: Path) -> None:
    """Write an ONNX file for a runtime; raises ModelError as `write` does."""
    _tried(runtime, "convert", graph, target)


def _tried(runtime: Runtime, function: str, *arguments: Any) -> None:
    try:
        with quiet():
            getattr(importlib.import_module(f"compressor.exporting.{runtime.writer}"), function)(*arguments)
    except ModelError:
        raise
    except Exception as error:  # every converter fails in ways of its own
        raise ModelError(f"{runtime.title} cannot take this model ({first_line(root_of(error))})") from error
