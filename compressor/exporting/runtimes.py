"""The runtimes that a package can be written for and networks are timed on: one row each, with what writes for it."""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, first_line
from compressor.exporting import engines, to_executorch, to_litert, to_ncnn, to_torch
from compressor.exporting.flatten import quiet, root_of
from compressor.exporting.measure import ROUNDS, SECONDS, profiled, without_reorders
from compressor.exporting.runtime import noise, open_session
from compressor.profiling.latency import once
from compressor.report.manifest import Array


def _openvino(graph: Path, target: Path) -> None:
    """An ONNX file and its weights as `target` (.xml) and a .bin beside it, in float32."""
    import openvino

    openvino.save_model(openvino.convert_model(str(graph)), str(target), compress_to_fp16=False)


@dataclass(frozen=True)
class Runtime:
    """How a network is written for a runtime, and what that can do. `exporting/engines.py` opens what was written."""

    name: str
    title: str
    suffix: str  # of its files
    packages: tuple[str, ...]  # that it is imported by; the extra in pyproject has the runtime's name
    made_with: tuple[str, ...]  # packages whose versions the manifest names
    write: Callable[[nn.Module, Tensor, Path, bool], None] | None = None  # a module in evaluation mode, for one image
    convert: Callable[[Path, Path], None] | None = None  # an ONNX graph, with its branches; with neither it is the file
    int8: bool = True
    quantizer: str = ""  # its own, in words; else ONNX Runtime's, for a chip


RUNTIMES: dict[str, Runtime] = {
    each.name: each
    for each in (
        Runtime("onnx", "ONNX Runtime", ".onnx", ("onnxruntime",), ("onnx", "onnxruntime")),
        Runtime("openvino", "OpenVINO", ".xml", ("openvino",), ("onnx", "openvino"), convert=_openvino),
        Runtime(
            "litert",
            "LiteRT",
            ".tflite",
            ("ai_edge_litert", "litert_torch"),
            ("litert-torch", "ai-edge-litert"),
            to_litert.write,
            quantizer="by ai-edge-quantizer: weights by channel; in float32 the scores of a last linear layer",
        ),
        Runtime(
            "executorch",
            "ExecuTorch",
            ".pte",
            ("executorch", "torchao"),
            ("executorch",),
            to_executorch.write,
            quantizer="by XNNPACKQuantizer: weights by channel; in float32 the convolution that reads the image, "
            "scores of a last linear layer, and means",
        ),
        Runtime("ncnn", "ncnn", ".param", ("ncnn", "pnnx"), ("ncnn", "pnnx"), to_ncnn.write, int8=False),
        Runtime("torch", "plain PyTorch", ".py", ("torch",), ("safetensors",), to_torch.write, int8=False),
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


def written(runtime: Runtime, make: Callable[..., None], *arguments: Any) -> None:
    """Call what a row has, whatever it warns of: what it wrote is compared with torch afterwards.

    Raises ModelError, which names the operator where the runtime lacks one.
    """
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(*arguments)
    except ModelError:
        raise
    except Exception as error:  # every converter fails in ways of its own
        raise ModelError(f"{runtime.title} cannot take this model ({first_line(root_of(error))})") from error


_AS_IN_ONNX = {"Convolution": "Conv", "Deconvolution": "ConvTranspose", "FullyConnected": "Gemm", "MatMul": "Gemm"}


@dataclass(frozen=True)
class Engine:
    """A runtime whose operators can be timed."""

    label: str
    package: str
    operators: Callable[[Any, Mapping[str, Array], int, float], dict[str, float]]  # ms by ONNX's name, of path or bytes
    calling: Callable[[Path, tuple[int, ...], int], Callable[[], object]]

    @property
    def version(self) -> str:
        """Of what is installed."""
        return version(self.package)

    def layer_ms(self, model: bytes, shape: tuple[int, ...], threads: int) -> float:
        """Milliseconds of the one layer of a graph, without what re-orders its input and output."""
        return without_reorders(self.operators(model, {"x": noise(shape)}, threads, SECONDS))


def _calling_onnxruntime(file: Path, shape: tuple[int, ...], threads: int) -> Callable[[], object]:
    session = open_session(file, threads=threads)
    feeds = {session.get_inputs()[0].name: noise(shape)}
    return lambda: session.run(None, feeds)


def _calling_openvino(file: Path, shape: tuple[int, ...], threads: int) -> Callable[[], object]:
    network, feeds = engines.openvino(file, threads), {"input": noise(shape)}
    return lambda: network(feeds)


def _openvino_operators(model: Any, feeds: Mapping[str, Array], threads: int, seconds: float) -> dict[str, float]:
    """By its own counters, which know microseconds: the mean over the runs, without the slower half."""
    core = engines.openvino_core()
    graph = core.read_model(model)
    graph.reshape({name: list(value.shape) for name, value in feeds.items()})
    options = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(graph, "CPU", options).create_infer_request()
    found: dict[str, tuple[str, list[float]]] = {}
    runs, spent = 0, 0.0
    while runs < ROUNDS[0] or (runs < ROUNDS[1] and spent < seconds):
        spent += once(lambda: request.infer(dict(feeds)))
        runs += 1
        for node in request.profiling_info:
            ms = node.real_time.total_seconds() * 1e3
            if ms:
                found.setdefault(node.node_name, (node.node_type, []))[1].append(ms)
    sums: dict[str, float] = {}
    for kind, times in found.values():
        operator = _AS_IN_ONNX.get(kind, kind)
        sums[operator] = sums.get(operator, 0.0) + float(np.mean(sorted(times)[: (len(times) + 1) // 2]))
    return sums


def _onnxruntime_operators(model: Any, feeds: Mapping[str, Array], threads: int, seconds: float) -> dict[str, float]:
    return profiled(model, dict(feeds), threads, seconds)


ENGINES = {
    "onnxruntime": Engine("ONNX Runtime", "onnxruntime", _onnxruntime_operators, _calling_onnxruntime),
    "openvino": Engine("OpenVINO", "openvino", _openvino_operators, _calling_openvino),
}
