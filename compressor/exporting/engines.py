"""Open a graph on its runtime.

A package carries a copy of this file for the device (`run.py` imports it). It needs NumPy and the runtime alone.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TUNED = "model.cpu.onnx"
Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]  # inputs by name to outputs, all with the batch first


def onnx(file: Path, threads: int) -> Run:
    """A graph on ONNX Runtime; one of `compressor tune` is taken as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if file.name == TUNED:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return functools.partial(session.run, None)


def openvino(file: Path, threads: int) -> Run:
    """A graph on OpenVINO's CPU plugin, compiled for each batch size.

    With a free batch size OpenVINO 2026.4 leaves some outputs of branches unwritten.
    """
    core = openvino_core()
    graph = core.read_model(str(file))
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    @functools.cache
    def compiled(images: int) -> Any:
        fixed = graph.clone()
        shape = fixed.input("input").partial_shape
        shape[0] = images
        fixed.reshape({"input": shape})
        return core.compile_model(fixed, "CPU", options).create_infer_request()

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = compiled(len(inputs["input"])).infer(dict(inputs))
        return [np.array(found[number]) for number in range(len(found))]

    return run


@functools.cache
def openvino_core() -> Any:
    """One for the process: each gives signal handlers a stack, and the first that goes takes the others' away."""
    import openvino

    return openvino.Core()


def litert(file: Path, threads: int) -> Run:
    """A graph on LiteRT, one image at a time; numbers of 8 bits are taken and given as floats."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=threads or None)
    call = interpreter.get_signature_runner()
    [given], outputs = call.get_input_details().items(), call.get_output_details()

    def one(image: np.ndarray) -> list[np.ndarray]:
        name, about = given
        found = call(**{name: _stored(image, about)})
        return [_real(found[each], outputs[each]) for each in sorted(outputs)]

    return _singly(one)


def executorch(file: Path, threads: int) -> Run:
    """A program on ExecuTorch, one image at a time; its Python package takes torch's tensors."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is experimental
        from executorch.runtime import Runtime
    if threads:
        torch.set_num_threads(threads)
    method = Runtime.get().load_program(str(file)).load_method("forward")
    return _singly(lambda image: [each.numpy().copy() for each in method.execute([torch.from_numpy(image)])])


def ncnn(file: Path, threads: int) -> Run:
    """A graph on ncnn, one image at a time, in float32."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads or net.opt.num_threads
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise ValueError(f"ncnn cannot open {file}")

    def one(image: np.ndarray) -> list[np.ndarray]:
        with net.create_extractor() as extractor:
            # A copy: layers that work in place write to it, and crash where the memory is numpy's.
            extractor.input("in0", ncnn.Mat(image[0]).clone())
            return [np.array(extractor.extract(f"out{number}")[1])[None] for number in range(len(net.output_names()))]

    return _singly(one)


def torch(file: Path, threads: int) -> Run:
    """A network as a Python file, with the weights beside it."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.load().eval()

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = network(torch.from_numpy(inputs["input"]))
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

    return run


OPENED: dict[str, Callable[[Path, int], Run]] = {
    "onnx": onnx, "openvino": openvino, "litert": litert, "executorch": executorch, "ncnn": ncnn, "torch": torch,
}  # fmt: skip


def _singly(one: Callable[[np.ndarray], list[np.ndarray]]) -> Run:
    """What runs a batch of a runtime that takes one image."""

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        images = np.ascontiguousarray(inputs["input"])
        found = [one(images[number : number + 1]) for number in range(len(images))]
        return [np.concatenate(each) for each in zip(*found)]

    return run


def _stored(values: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """Floats as a tensor of 8 bits holds them."""
    scale, zero = about["quantization"]
    if np.issubdtype(about["dtype"], np.floating):
        return values
    bounds = np.iinfo(about["dtype"])
    stored: np.ndarray = np.clip(np.round(values / scale) + zero, bounds.min, bounds.max).astype(about["dtype"])
    return stored


def _real(values: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """The floats that a tensor of 8 bits stands for."""
    scale, zero = about["quantization"]
    found: np.ndarray = ((values.astype(np.float32) - zero) * scale).astype(np.float32) if scale else values.copy()
    return found
