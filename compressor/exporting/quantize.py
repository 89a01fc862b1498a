"""Flat graphs in INT8: ONNX Runtime's own static quantizer, with the settings that pay on a chip, on real activations.

The quantizer sees only a graph's top level, so a model with branches is quantized stage by stage, each on what the
float stages before it give.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.errors import ModelError, first_line
from compressor.exporting.compose import Samples, Stage, StageMaker
from compressor.exporting.flatten import quiet
from compressor.exporting.ranges import Reader, write_ranges
from compressor.exporting.weights import WeightsFile
from compressor.report.manifest import Array

Chip = Literal["x86", "x86-old", "arm", "npu"]
_BATCH = 8  # images that are calibrated on at a time


@dataclass(frozen=True)
class Scheme:
    """How numbers are stored for a chip, in ONNX Runtime's names, and what to know about it."""

    activations: str
    weights: str
    per_channel: bool
    reduced: bool  # 7 bits for weights
    note: str

    @property
    def steps(self) -> int | None:
        """Of weights, on either side of zero; None where not every channel has its own."""
        return None if not self.per_channel else 64 if self.reduced else 127


# Measured on an x86 chip with VNNI: the quantizer's own defaults (QInt8 for both, one scale a tensor) were no faster
# than float32, these were three times as fast. The others follow ONNX Runtime's documentation and were not measured.
SCHEMES: dict[Chip, Scheme] = {
    "x86": Scheme("QUInt8", "QInt8", True, False, "for x86 with VNNI; without it sums saturate: --chip x86-old"),
    "x86-old": Scheme("QUInt8", "QInt8", True, True, "for x86 without VNNI: weights of 7 bits, no sum saturates"),
    "arm": Scheme("QInt8", "QInt8", True, False, "for Arm64: signed on both sides; not measured by us"),
    "npu": Scheme("QUInt8", "QUInt8", False, False, "for accelerators, one scale a tensor; not measured by us. Most "
                  "take flat graphs only (--exits separate), and some one batch size"),
}  # fmt: skip

# Products of 8 bits are added up four channels at a time: a convolution of an image's few gains little by them, and the
# rest of the network loses by the rounded image (`benchmarks.int8_ways` measures both).
IMAGE_CHANNELS = 4

# Left in float32: the last step to probabilities is cheap, and a router's thresholds are compared with them.
_LEFT_OUT = frozenset({"Softmax", "Sigmoid", "LogSoftmax"})


class QuantizingMaker(StageMaker):
    """Makes the graphs of one package in INT8, calibrated on the samples."""

    def __init__(self, weights: WeightsFile, opset: int, chip: Chip) -> None:
        super().__init__(weights, opset)
        self._scheme = SCHEMES[chip]

    def make(self, module: nn.Module, samples: Samples, inputs: Sequence[str], outputs: Sequence[str] | None) -> Stage:
        """The module as a quantized graph; see `StageMaker.make`."""
        import onnx_ir as ir

        with TemporaryDirectory() as scratch:
            file, quantized = Path(scratch) / "stage.onnx", Path(scratch) / "quantized.onnx"
            program = self._program(module, samples, inputs, outputs)
            program.save(file, external_data=False)
            try:
                with quiet():
                    left = image_convolution(program.model.graph)
                    quantize(file, quantized, self._scheme, _pieces(samples, inputs), nodes_to_exclude=left)
                    free_scores_(quantized)
            except Exception as error:  # the quantizer fails in many ways
                raise ModelError(f"ONNX Runtime cannot quantize this model ({first_line(error)})") from error
            stage = Stage(ir.load(quantized))
            self.weights.take(stage.model)
        return stage


def _pieces(samples: Samples, inputs: Sequence[str]) -> Iterator[dict[str, Array]]:
    """What a stage is called with, a few images at a time."""
    for arguments in samples:
        images = len(arguments[0])
        for place in range(0, images, _BATCH):
            yield {name: _piece(tensor, place, images) for name, tensor in zip(inputs, arguments, strict=True)}


def _piece(tensor: Tensor, place: int, images: int) -> Array:
    whole: Array = (tensor[place : place + _BATCH] if len(tensor) == images else tensor).numpy()
    return whole


def quantize(
    source: Path,
    target: Path,
    scheme: Scheme,
    pieces: Iterable[dict[str, Array]],
    *,
    cut: bool = True,
    **options: Any,
) -> None:
    """Write a float graph in INT8, calibrated on what it is called with; `options` are the quantizer's own.

    Ranges of activations are those of `write_ranges`; without `cut`, the quantizer's.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, ranges = source.with_name("prepared.onnx"), source.with_name("ranges.json")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    kinds, operators = quantization.QuantType, sorted(set(QDQRegistry) - _LEFT_OUT)
    if cut:
        write_ranges(prepared, operators, pieces, ranges)
    quantization.quantize_static(
        prepared,
        target,
        None if cut else Reader(pieces),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=scheme.per_channel,
        reduce_range=scheme.reduced,
        activation_type=getattr(kinds, scheme.activations),
        weight_type=getattr(kinds, scheme.weights),
        calibration_cache_path=ranges if cut else None,
        **options,
    )


def image_convolution(graph: Any) -> list[str]:
    """The name of the convolution that reads an image, which stays in float32; empty for a graph without one.

    Not where its maps are pooled: ONNX Runtime rounds them first, and has a slow kernel for pooling them then.
    """
    first = next((node for node in graph if node.op_type == "Conv"), None)
    if first is None or not _few(first.inputs[0].shape):
        return []
    readers = first.outputs[0].consumers()
    readers = (*readers, *(each for reader in readers for each in reader.outputs[0].consumers()))  # of the activation
    return [] if any(reader.op_type == "MaxPool" for reader in readers) else [first.name]


def _few(shape: Any) -> bool:
    return shape is not None and isinstance(shape[1], int) and shape[1] <= IMAGE_CHANNELS


def free_scores_(file: Path) -> None:
    """Leave what a matrix product gives at the graph's end as it is, in float32: rounded to 8 bits, scores above those
    of the calibration images would be cut off. ONNX Runtime multiplies in 8 bits all the same.
    """
    import onnx

    model = onnx.load(file)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        restored = makers[output.name]
        rounded = makers.get(restored.input[0]) if restored.op_type == "DequantizeLinear" else None
        product = None if rounded is None else makers.get(rounded.input[0])
        if rounded is not None and product is not None and product.op_type in ("Gemm", "MatMul"):
            product.output[0] = output.name
            graph.node.remove(restored)
            graph.node.remove(rounded)
    onnx.save(model, file)


def saturates(chip: Chip) -> bool:
    """Whether sums overflow on this machine with what is stored for the chip: x86 without VNNI adds pairs of products
    in 16 bits, which products of 8 by 8 bits do not fit.
    """
    return torch.cpu._is_avx2_supported() and not torch.cpu._is_vnni_supported() and not SCHEMES[chip].reduced


def facts(chip: Chip, images: int, own: str = "") -> dict[str, Any]:
    """What a manifest says about the quantization; of a runtime's own quantizer what that is, and no chip."""
    scheme, calibrated = SCHEMES[chip], f"{images} training images"
    if own:
        return {"calibrated_on": calibrated, "note": own}
    return {
        "chip": chip,
        "activations": scheme.activations,
        "weights": scheme.weights,
        "per_channel": scheme.per_channel,
        "calibrated_on": calibrated,
        "note": scheme.note + ("; measured on a chip without VNNI, where sums saturate" if saturates(chip) else ""),
    }
