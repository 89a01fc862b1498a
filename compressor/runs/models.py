"""Open and write every model, those too that our own rooms made of others: detached, routed, with a PrimeNet block."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import UsageError
from compressor.exits.detachable import rebuild as detached
from compressor.exits.nested import rebuild as nested
from compressor.exporting.onnx_in.reading import open_onnx
from compressor.exporting.runtime import onnx_at
from compressor.files.limits import LARGEST_GIB
from compressor.graph.neutral import afresh
from compressor.loading import opening, saving
from compressor.loading.opening import OpenedModel, Rebuilders
from compressor.primenet.place import rebuild as replaced
from compressor.routing.network import rebuild as routed
from compressor.surgery.blocks import rebuild as shortened

REBUILDERS: Rebuilders = {
    "blocks": shortened,
    "detach": detached,
    "nsn": nested,
    "primenet": replaced,
    "route": routed,
}

save_model = partial(saving.save_model, rebuilders=REBUILDERS)
transformed = partial(saving.transformed, rebuilders=REBUILDERS)


def open_model(
    path: str | Path | None,
    *,
    arch: str | None = None,
    arch_arguments: Mapping[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    weights: str | None = None,
    trust: bool = False,
    max_size: float = LARGEST_GIB,
) -> OpenedModel:
    """Open a model as `loading.opening.open_model` does, and ONNX files too."""
    file = onnx_at(None if path is None else str(path), max_size)
    if file is not None:
        refuse_definition(file, arch, weights)
        return open_onnx(file, shape=input_shape, most_gib=max_size)
    return opening.open_model(
        path, arch=arch, arch_arguments=arch_arguments, input_shape=input_shape, weights=weights, trust=trust,
        max_size=max_size, rebuilders=REBUILDERS,
    )  # fmt: skip


def refuse_definition(file: Path, arch: str | None, weights: str | None = None) -> None:
    """Raises UsageError where an ONNX file is to have another architecture, or one of several sets of weights."""
    if arch is not None or weights is not None:
        what = "architecture: leave `arch`" if arch is not None else "only weights: leave `weights`"
        raise UsageError(f"{file} is an ONNX model and brings its {what} out")


@afresh()
def load(path: str | Path, *, arch: str | None = None, weights: str | None = None, trust: bool = False) -> nn.Module:
    """Open a model file, ONNX too, and return its network in eval mode.

    `arch` (`torchvision:NAME`, `timm:NAME`, `sample:NAME` or `FILE.py:FUNCTION`) is needed where the file holds weights
    only, or where the architecture is your own code. `weights` names the keys of those that are meant, where the file
    has several ("model_ema"). `trust` lets the file run any code. Raises FileError for a file that is missing, damaged
    or asks for code, UsageError for an architecture that is missing or does not exist.

    Example:
        module = compressor.load("runs/demo/model.safetensors")
        module = compressor.load("weights.safetensors", arch="torchvision:resnet18")
    """
    return open_model(path, arch=arch, weights=weights, trust=trust).module


@afresh()
def save(
    module: nn.Module,
    path: str | Path,
    *,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    overwrite: bool = False,
) -> None:
    """Write `module` to a checkpoint that `compressor.load` opens again.

    `arch` says how the network was built before it was edited (`torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`,
    each with `:key=value,...` behind it where it had arguments); it may be left out where all layers are torch's or
    torchvision's own classes. `input_shape` is (channels, height, width). Raises FileError where `path` exists and
    `overwrite` is not given, ModelError where `module` cannot be built again from `arch`.

    Example:
        compressor.save(module, "small.safetensors", arch="torchvision:resnet18", input_shape=(3, 224, 224))
    """
    for note in save_model(module, path, arch=arch, input_shape=input_shape, overwrite=overwrite):
        warnings.warn(note, stacklevel=3)  # where it was called
