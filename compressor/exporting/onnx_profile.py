"""The cost of an .onnx file, from the file alone: parameters of its initializers, multiply-adds of its shapes.

The file is counted in a process of its own, without torch.
"""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.errors import FileError, first_line, shown
from compressor.exporting.outside import Taken, take_in
from compressor.exporting.runtime import SECONDS, OnnxModel
from compressor.exporting.weights import graphs_in
from compressor.files.limits import LARGEST_GIB, allow, apart
from compressor.report.manifest import MODEL, TUNED_MODEL, fed, manifest_inside, packaged
from compressor.report.measurements import LayerCost, Profile


def profile_onnx(
    path: str | os.PathLike[str], *, latency: bool = False, exit: int | None = None, most_gib: float = LARGEST_GIB
) -> Profile:
    """Multiply-adds for one image, parameters, size and, if asked, latency of an .onnx file.

    Parameters are the elements of floating-point and 8-bit weights; batch norms that were folded have none left. Of
    the branches of an If the more expensive one counts. What cannot be counted is listed in `uncounted` by operator.

    With `exit`, of a package: what its manifest promises for that exit (the export checked it), and the latency there.

    Raises:
        UsageError: there is no such exit.
        FileError: the file is missing, broken, takes too much time or memory, or leaves the size of its images open.
    """
    file = Path(path)
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        found = apart(file, "compressor.exporting.onnx_profile:counted", str(file), folder, most_gib)
    facts = None if exit is None else packaged(manifest_inside(found["metadata"], str(file)), exit, file)
    reasons = {
        "macs_thop": "thop counts torch modules, not .onnx files",
        "activation_bytes": "not measured for .onnx files",
    }
    timings: dict[str, Any] | None = None
    if latency:
        from compressor.exporting.latency import onnx_latency  # torch takes seconds to import

        timing = onnx_latency(file, fed(facts.feeds) if facts else {}, most_gib)
        timings = {"torch": None, "onnxruntime": timing}
        reasons["latency_ms.torch"] = "an .onnx file runs on ONNX Runtime"
    else:
        reasons["latency_ms"] = "not asked for"
    layers = tuple(_layer_cost(row) for row in found["layers"])
    return Profile(
        macs=found["macs"] if facts is None else facts.macs,
        macs_thop=None,
        params=found["params"] if facts is None else facts.params,
        layers=layers if facts is None else (),
        uncounted=found["uncounted"] if facts is None else {},
        latency_ms=timings,
        file_bytes=found["bytes"],
        reasons=reasons,
    )


def _layer_cost(row: dict[str, Any]) -> LayerCost:
    shapes = {name: tuple(tuple(shape) for shape in row[name]) for name in ("input_shapes", "output_shapes")}
    return LayerCost(**{**row, **shapes})


Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # name of a tensor -> its shape, where shape inference knows all of it


def counted(source: str, folder: str, most_gib: float) -> dict[str, Any]:
    """Take a model in and count it: what `onnx_profile.Profile` needs, as JSON holds it.

    Raises FileError: as `runtime.OnnxModel`, and where the file leaves the size of its images open.
    """
    file = Path(source)
    taken = take_in(file, Path(folder), most_gib)
    allow(seconds=SECONDS)
    model = OnnxModel(taken.copy, named=file, own=True, several=True)
    if any(None in sizes for sizes in model.sizes.values()):
        raise FileError(f"{file} leaves its image size open, so it has no one cost; export it for a fixed size")
    proto = _portable(file, taken)
    try:
        graph = with_one_image(proto, model.input_name).graph
    except MemoryError:
        raise
    except Exception as error:  # protobuf and onnx each have their own kinds
        raise FileError(f"{file} cannot be read as ONNX ({first_line(error)})") from error
    weights = [(name, math.prod(tensor.dims)) for name, tensor in _weights(proto.graph)]
    tally = _Tally(dict(weights), model.batch or 1)
    tally.add(graph, {})
    return {
        "macs": tally.macs,
        "params": sum(count for _, count in weights),
        "layers": tally.layers,
        "uncounted": tally.uncounted,
        "metadata": model.metadata,
        "bytes": taken.bytes,
    }


def _portable(file: Path, taken: Taken) -> Any:
    """The graph whose work is counted: what `compressor tune` wrote has operators without published shapes."""
    portable = file.with_name(MODEL)
    if file.name != TUNED_MODEL or not portable.exists():
        return taken.proto
    folder = taken.copy.parent / "portable"
    folder.mkdir()
    return take_in(portable, folder).proto


def with_one_image(proto: Any, input_name: str | None = None) -> Any:
    """The model with the shape of every tensor inferred, for one image unless the file fixes another batch; of several
    inputs the named one has the images.
    """
    import onnx

    image = next(entry for entry in proto.graph.input if input_name in (None, entry.name))
    free = image.type.tensor_type.shape.dim[0].dim_param
    for graph in graphs_in(proto.graph):
        for entry in (*graph.input, *graph.output, *graph.value_info):
            for dim in entry.type.tensor_type.shape.dim if entry.type.HasField("tensor_type") else ():
                if free and dim.dim_param == free:
                    dim.dim_value = 1
    if not image.type.tensor_type.shape.dim[0].HasField("dim_value"):  # free and without a name
        image.type.tensor_type.shape.dim[0].dim_value = 1
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


@dataclass
class _Tally:
    """The multiply-adds found so far, for one image."""

    weights: dict[str, int]  # name -> elements
    batch: int  # images in one run
    macs: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    uncounted: Counter[str] = field(default_factory=Counter)

    def add(self, graph: Any, outer: Shapes) -> None:
        """Count a graph; `outer` are the shapes known where it stands."""
        shapes = {**outer, **shapes_of(graph)}
        for node in graph.node:
            if node.op_type == "If":
                self._add_largest(node, shapes)
            elif node.op_type in _RULES:
                self._add_counted(node, shapes)
            elif node.op_type not in _IGNORED:
                self.uncounted[shown(node.op_type, 40)] += 1

    def _add_counted(self, node: Any, shapes: Shapes) -> None:
        counted = _RULES[node.op_type](node, shapes)
        if counted is None:
            self.uncounted[f"{node.op_type} (shape unknown)"] += 1
            return
        macs = round(counted / self.batch)
        self.macs += macs
        self.layers.append(_layer(node, shapes, macs, sum(self.weights.get(name, 0) for name in node.input)))

    def _add_largest(self, node: Any, shapes: Shapes) -> None:
        branches = []
        for attribute in node.attribute:
            branches.append(_Tally(self.weights, self.batch))
            branches[-1].add(attribute.g, shapes)
        largest = max(branches, key=lambda branch: branch.macs)
        self.macs += largest.macs
        self.layers += largest.layers
        self.uncounted += largest.uncounted


def shapes_of(graph: Any) -> Shapes:
    """The shape of every tensor of a graph, but of those in the graphs inside it, where all of it is known."""
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for entry in (*graph.input, *graph.output, *graph.value_info):
        kind = entry.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[entry.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def _convolution(node: Any, shapes: Shapes) -> int | None:
    transposed = node.op_type == "ConvTranspose"
    positions = shapes.get(node.input[0] if transposed else node.output[0])
    weight = shapes.get(node.input[_weight_at(node)])
    return None if positions is None or weight is None else math.prod(positions) * math.prod(weight[1:])


def _product(node: Any, shapes: Shapes) -> int | None:
    left, output = shapes.get(node.input[0]), shapes.get(node.output[0])
    if left is None or output is None:
        return None
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * left[-2 if transposed else -1]


def _weight_at(node: Any) -> int:
    """Position of the weight among a node's inputs; the quantized operators put scales before it."""
    return 3 if node.op_type.startswith("QLinear") else 1


def _layer(node: Any, shapes: Shapes, macs: int, params: int) -> dict[str, Any]:
    """The fields of a `LayerCost`."""
    name = node.input[_weight_at(node)]
    return {
        "name": shown(name.removesuffix(".weight") if name.endswith(".weight") else node.name or name),
        "kind": node.op_type,
        "input_shapes": (shapes[node.input[0]],) if node.input[0] in shapes else (),
        "output_shapes": (shapes[node.output[0]],) if node.output[0] in shapes else (),
        "macs": macs,
        "params": params,
    }


def _weights(graph: Any) -> Iterator[tuple[str, Any]]:
    """Names and tensors of weights in a graph and the graphs inside it; 64-bit integers are shapes and indices."""
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    kinds |= {TensorProto.INT8, TensorProto.UINT8}
    for each in graphs_in(graph):
        tensors = [(tensor.name, tensor) for tensor in each.initializer]
        constants = [node for node in each.node if node.op_type == "Constant"]
        tensors += [(node.output[0], entry.t) for node in constants for entry in node.attribute if entry.HasField("t")]
        yield from ((name, tensor) for name, tensor in tensors if tensor.data_type in kinds)


_RULES: dict[str, Callable[[Any, Shapes], int | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "FusedConv": _convolution,
    "Gemm": _product,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "FusedMatMul": _product,
    "FusedGemm": _product,
}

_ELEMENTWISE = (
    "Abs Add And BitShift Cast CastLike Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow "
    "QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh "
    "ThresholdedRelu Where Xor QuantizeLinear DequantizeLinear DynamicQuantizeLinear"
)
_POOLING = (
    "AveragePool GlobalAveragePool GlobalMaxPool GlobalLpPool LpPool MaxPool MaxUnpool Resize Upsample GridSample"
)
_NORMALISATION = (
    "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization RMSNormalization "
    "MeanVarianceNormalization LRN Softmax LogSoftmax Hardmax Dropout"
)
_REDUCTION = (
    "ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare TopK"
)
_SHAPES = (
    "Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND "
    "Identity NonZero OneHot Pad Range Reshape ReverseSequence Scatter ScatterElements ScatterND Shape Size Slice "
    "SpaceToDepth Split Squeeze Tile Transpose Trilu Unique Unsqueeze RandomNormal RandomNormalLike RandomUniform "
    "RandomUniformLike"
)
_IGNORED: frozenset[str] = frozenset(" ".join((_ELEMENTWISE, _POOLING, _NORMALISATION, _REDUCTION, _SHAPES)).split())
