"""For ExecuTorch: a .pte file for XNNPACK, in INT8 by XNNPACKQuantizer with less rounded than it would by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compressor.exporting.quantize import IMAGE_CHANNELS
from compressor.exporting.ranges import least_error

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.conv2d.default, _ATEN.linear.default}
_CLIPS = {_ATEN.hardtanh.default, _ATEN.hardtanh_.default}  # as in ReLU6
_MEANS = {_ATEN.mean.dim, _ATEN.mean.default, _ATEN.adaptive_avg_pool2d.default}


def write(module: nn.Module, samples: Tensor, target: Path, int8: bool) -> None:
    """A .pte file for one image; what XNNPACK lacks runs in ExecuTorch's portable operators."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    example = (samples[:1].contiguous(),)
    program = torch.export.export(_quantized(module, samples) if int8 else module, example)
    made = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    target.write_bytes(made.buffer)


def _quantized(module: nn.Module, samples: Tensor) -> nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            super().annotate(model)
            _round_less_(model.graph, get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
            return model

    own = Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(module, (samples[:1],)).module(), own)
    with torch.no_grad():
        for image in samples:
            prepared(image[None])
    _cut_(prepared)
    made: nn.Module = convert_pt2e(prepared)
    return made


def _cut_(prepared: nn.Module) -> None:
    """Put observers with the ranges of `least_error` in place of those that hold histograms."""
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver

    made = dict[nn.Module, nn.Module]()
    for name, seen in list(prepared.named_modules(remove_duplicate=False)):
        if not isinstance(seen, HistogramObserver):
            continue
        if seen not in made:
            least, most = float(seen.min_val), float(seen.max_val)
            edges = np.linspace(least, most, len(seen.histogram) + 1)
            kinds = {each: getattr(seen, each) for each in ("dtype", "qscheme", "quant_min", "quant_max", "eps")}
            made[seen] = MinMaxObserver(**kinds)
            low, high = least_error(seen.histogram.numpy(), edges, least, most)
            made[seen].min_val, made[seen].max_val = torch.tensor(low), torch.tensor(high)
        prepared.set_submodule(name, made[seen])


def _round_less_(graph: fx.Graph, dynamic: Any) -> None:
    """Change what XNNPACKQuantizer noted at the nodes of a graph, where its rounding costs accuracy and saves no time.

    Of a product that ReLU6 cuts off only what is left is rounded, as with ReLU: XNNPACK computes both at once. A mean
    keeps the digits that the maps lack which it is taken of. In float32 stay the convolution that reads an image, and
    scores of a last linear layer, whose input is rounded by the range that it has in each image (`dynamic`).
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import Q_ANNOTATION_KEY
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

    results = graph.find_nodes(op="output")[0].all_input_nodes
    first = next((node for node in graph.nodes if node.target == _ATEN.conv2d.default), None)
    reads_image = first is not None and first.all_input_nodes[0].meta["val"].shape[1] <= IMAGE_CHANNELS
    free = set[fx.Node]()  # of the quantizer
    for node in graph.nodes:
        noted = node.meta.get(Q_ANNOTATION_KEY)
        shared = getattr(noted, "output_qspec", None)
        if (
            node.target in _MEANS
            or (node is first and reads_image)
            or (isinstance(shared, SharedQuantizationSpec) and shared.edge_or_node in free)
        ):
            node.meta.pop(Q_ANNOTATION_KEY, None)
            free.add(node)
        elif node.target in _CLIPS and node.args[0].target in _PRODUCTS and len(node.args[0].users) == 1:
            product = node.args[0].meta.get(Q_ANNOTATION_KEY)
            if product is not None:
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=product.output_qspec, _annotated=True)
                product.output_qspec = None
        elif node.target == _ATEN.linear.default and node in results and noted is not None:
            given, weight = node.args[:2]
            noted.input_qspec_map = {given: dynamic.input_activation, weight: dynamic.weight}
            noted.output_qspec = None
