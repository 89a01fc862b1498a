"""Run an .onnx file on ONNX Runtime alone: numpy batches in, numpy outputs out, no torch."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.errors import CompressorError, FileError
from compressor.exporting.manifest import TUNED_MODEL
from compressor.exporting.outside import check_graph
from compressor.exporting.parity import Array

# ONNX Runtime's names of element types, as far as a model's input may have them.
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxModel:
    """An .onnx image classifier with one input, called with a batch of images.

    A graph that was exported for one fixed batch size is fed in pieces of that size, the last one filled up. Inputs
    with a default (which exit of a package) may be given as `feeds`.

    Example:
        model = OnnxModel("small.onnx")
        logits = model(images)                # (batch, channels, height, width) -> (batch, classes)
        model.input_shape                     # (3, 224, 224)

    Raises:
        FileError: the file is missing, empty, no ONNX file, needs what this ONNX Runtime lacks, or wants other inputs
            than one tensor of numbers.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None, feeds: Mapping[str, Array] | None = None
    ) -> None:
        self.path = Path(path)
        self.session = open_session(self.path, threads=threads)
        self._feeds = dict(feeds or {})
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(entry.name for entry in inputs) or "none"
            raise FileError(f"{self.path} takes {len(inputs)} inputs ({names}); only files with one input can be run")
        if inputs[0].type not in _DTYPES:
            raise FileError(f"{self.path} takes an input of type {inputs[0].type}, which is no tensor of numbers")
        self.input_name = inputs[0].name
        self._dtype = _DTYPES[inputs[0].type]
        sizes = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
        self.batch: int | None = sizes[0] if sizes else None
        self.input_shape: tuple[int | None, ...] = sizes[1:]  # without the batch; None where the file leaves it open

    def __call__(self, images: Array) -> Array:
        """The first output for `images`, both with the batch first.

        Raises:
            CompressorError: the images do not have the shape that the file takes.
        """
        if self.batch is None or len(images) == self.batch:
            return self._run(images)
        pieces = [self._run_filled(images[i : i + self.batch]) for i in range(0, len(images), self.batch)]
        return np.concatenate(pieces)

    def _run_filled(self, images: Array) -> Array:
        wanted = self.batch or len(images)
        return self._run(images[np.arange(wanted) % len(images)])[: len(images)]

    def _run(self, images: Array) -> Array:
        batch = np.ascontiguousarray(images, dtype=self._dtype)
        try:
            output: Array = self.session.run(None, {self.input_name: batch, **self._feeds})[0]
        except Exception as error:  # onnxruntime's exceptions share no class of their own
            raise CompressorError(
                f"{self.path} does not run on an input of shape {_shape(batch.shape)}, "
                f"it takes {_shape((self.batch, *self.input_shape))} ({first_line(error)})"
            ) from error
        return output


Level = Literal["all", "extended", "basic", "off"]  # of what ONNX Runtime changes in a graph before it runs it


def open_session(
    path: Path, *, threads: int | None = None, level: Level | None = None, profile: Path | None = None
) -> Any:
    """An onnxruntime.InferenceSession on the CPU with `threads` threads an operator (None: one per core).

    Without a level a file of `compressor tune` is taken as it is, any other changed as far as ONNX Runtime can. With
    `profile` the session writes what it runs to a file of that name and more.

    Raises:
        FileError: the file is missing, empty, no ONNX file, reads outside of its folder, or needs what this ONNX
            Runtime lacks.
    """
    import onnxruntime

    if path.is_dir():
        raise FileError(f"{path} is a folder; give the .onnx file in it")
    if not path.exists():
        raise FileError(f"{path} does not exist; give an .onnx file")
    if path.stat().st_size == 0:
        raise FileError(f"{path} is empty; export it again")
    check_graph(path)
    options = session_options(level or ("off" if path.name == TUNED_MODEL else "all"), threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no class of their own
        raise FileError(f"{path} cannot be opened by ONNX Runtime ({first_line(error)})") from error


def session_options(level: Level = "all", threads: int | None = None) -> Any:
    """An onnxruntime.SessionOptions that keeps quiet: what goes wrong comes as an exception."""
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "off": levels.ORT_DISABLE_ALL,
    }[level]
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def first_line(error: BaseException) -> str:
    """What an exception says in its first line, or its kind where it says nothing; without ONNX Runtime's codes."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def _shape(sizes: tuple[int | None, ...]) -> str:
    return "x".join("any" if size is None else str(size) for size in sizes)
