"""Networks run in turn by ONNX Runtime, so that what else the machine does slows all of them alike."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from compressor.exporting.onnx import export_onnx
from compressor.exporting.runtime import OnnxModel


class Timed(NamedTuple):
    """One network: bytes of its .onnx file, and processor seconds of every round."""

    bytes: int
    seconds: list[float]


def in_turn(networks: Mapping[str, nn.Module], example: Tensor, rounds: int) -> dict[str, Timed]:
    """Export all, then run each on the example, on one thread, one after the other in every round."""
    image = example.numpy().astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        models, found = {}, {}
        for name, network in networks.items():
            path = Path(folder) / f"{len(models)}.onnx"
            export_onnx(network, example, path)
            models[name] = OnnxModel(path, threads=1, own=True)
            found[name] = Timed(path.stat().st_size, [])
        for _ in range(rounds):
            for name, model in models.items():
                start = time.process_time()
                model(image)
                found[name].seconds.append(time.process_time() - start)
    return found
