"""What a target of time is measured on: ONNX Runtime, or OpenVINO."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from compressor.exporting import run
from compressor.exporting.measure import ROUNDS, SECONDS, profiled, without_reorders
from compressor.exporting.runtime import noise, open_session
from compressor.profiling.latency import once
from compressor.report.manifest import Array

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


def _onnxruntime(file: Path, shape: tuple[int, ...], threads: int) -> Callable[[], object]:
    session = open_session(file, threads=threads)
    feeds = {session.get_inputs()[0].name: noise(shape)}
    return lambda: session.run(None, feeds)


def _openvino(file: Path, shape: tuple[int, ...], threads: int) -> Callable[[], object]:
    network, feeds = run.openvino(file, threads), {"input": noise(shape)}
    return lambda: network(feeds)


def _openvino_operators(model: Any, feeds: Mapping[str, Array], threads: int, seconds: float) -> dict[str, float]:
    """By its own counters, which know microseconds: the mean over the runs, without the slower half."""
    core = run.openvino_core()
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
    "onnxruntime": Engine("ONNX Runtime", "onnxruntime", _onnxruntime_operators, _onnxruntime),
    "openvino": Engine("OpenVINO", "openvino", _openvino_operators, _openvino),
}
