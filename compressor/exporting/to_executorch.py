"""ExecuTorch: a .pte file for one image, for the XNNPACK backend, quantized by its quantizer."""

from pathlib import Path

import torch
from torch import Tensor, nn


def write(module: nn.Module, samples: Tensor, target: Path, int8: bool) -> None:
    """Write a module; what XNNPACK lacks runs in ExecuTorch's portable operators."""
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

    own = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(module, (samples[:1],)).module(), own)
    with torch.no_grad():
        for image in samples:
            prepared(image[None])
    made: nn.Module = convert_pt2e(prepared)
    return made
