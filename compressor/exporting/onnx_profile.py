"""The cost of an .onnx file, from the file alone: parameters of its initializers, multiply-adds of its shapes."""

import os
import tempfile
from pathlib import Path
from typing import Any

from compressor.files.limits import LARGEST_GIB, apart
from compressor.report.cost import LayerCost, Profile
from compressor.report.manifest import fed, manifest_inside, packaged


def profile_onnx(
    path: str | os.PathLike[str], *, latency: bool = False, exit: int | None = None, most_gib: float = LARGEST_GIB
) -> Profile:
    """Multiply-adds for one image, parameters, size and, if asked, latency of an .onnx file with one input.

    Parameters are the elements of floating-point and 8-bit weights; batch norms that were folded have none left. Of
    the branches of an If the more expensive one counts. What cannot be counted is listed in `uncounted` by operator.

    With `exit`, of a package: what its manifest promises for that exit (the export checked it), and the latency there.

    Raises:
        UsageError: there is no such exit.
        FileError: the file is missing, broken, takes too much time or memory, or leaves the size of its images open.
    """
    file = Path(path)
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        found = apart(file, "compressor.exporting.onnx_count:counted", str(file), folder, most_gib)
    facts = None if exit is None else packaged(manifest_inside(found["metadata"], str(file)), exit, file)
    reasons = {
        "macs_thop": "thop counts torch modules, not .onnx files",
        "activation_bytes": "not measured for .onnx files",
    }
    timings: dict[str, Any] | None = None
    if latency:
        from compressor.exporting.latency import onnx_latency  # torch takes seconds to import

        timing = onnx_latency(file, tuple(found["input_shape"]), fed(facts.feeds) if facts else {}, most_gib)
        timings = {"torch": None, "onnxruntime": timing}
        reasons["latency_ms.torch"] = "an .onnx file runs on ONNX Runtime"
    else:
        reasons["latency_ms"] = "not asked for"
    layers = tuple(_layer(row) for row in found["layers"])
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


def _layer(row: dict[str, Any]) -> LayerCost:
    shapes = {name: tuple(tuple(shape) for shape in row[name]) for name in ("input_shapes", "output_shapes")}
    return LayerCost(**{**row, **shapes})
