"""How long an image takes that leaves a routed network at each depth, for budgets in milliseconds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compressor.exporting.forms import forced
from compressor.exporting.latency import file_latency
from compressor.exporting.onnx import export_onnx
from compressor.routing.curve import mean_ms
from compressor.routing.network import Routed
from compressor.routing.section import Findings


def depth_times(routed: Routed, example: Tensor) -> tuple[float, ...]:
    """Median milliseconds of one image on ONNX Runtime in the whole network, at thresholds that make it leave there.

    So what sends images on and puts their scores together again is included. Weights do not matter.

    Raises CompressorError where the network cannot be exported.
    """
    found, before = [], routed.thresholds.clone()
    try:
        with TemporaryDirectory() as folder:
            for depth in range(routed.depths):
                file = Path(folder) / f"depth_{depth}.onnx"
                routed.set_threshold_(forced(routed.depths, depth).tolist())
                export_onnx(routed, example, file)
                found.append(float(file_latency(file, tuple(example.shape[1:]))["median"]))
    finally:
        routed.thresholds.copy_(before)
    return tuple(found)


def in_time(found: Findings, depth_ms: Sequence[float]) -> Iterator[str]:
    """A line on how the budget in milliseconds was met; nothing without a budget."""
    if not depth_ms:
        return
    each = ", ".join(f"depth {depth} {ms:.3g} ms" for depth, ms in enumerate(depth_ms))
    yield (
        f"On ONNX Runtime, {torch.get_num_threads()} threads, one image takes {each}; at the chosen threshold "
        f"{mean_ms(found.routed, depth_ms):.3g} ms in the mean of the test images."
    )
