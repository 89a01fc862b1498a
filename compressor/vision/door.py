"""The one door to torchvision: whoever needs models, data sets or transforms of torchvision gets them from here.

A CPU build of torch beside the package registry's torchvision (built for CUDA) leaves torchvision without its
compiled operators, and `import torchvision` then fails with "operator torchvision::nms does not exist", although
nothing used here needs them. So the two schemas that its Python code refers to are declared first.
"""

import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import UsageError, cause, did_you_mean
from compressor.vision.preparation import Preparation

# The two operators that torchvision registers fake kernels for at import; the rest it only touches when it has them.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare torchvision's operators where its compiled library cannot be loaded; None where there is no need."""
    if "torchvision" in sys.modules or hasattr(torch.ops.torchvision, "nms"):
        return None
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        raise UsageError("torchvision is not installed: pip install torchvision")
    for compiled in _compiled(spec.submodule_search_locations):
        try:
            # torchvision loads the same file again right afterwards, which is then a lookup.
            torch.ops.load_library(compiled)
            return None
        except OSError:
            pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _compiled(folders: Iterable[str]) -> list[Path]:
    """Libraries with torchvision's operators: `_C` until 0.28, `_C_stable` since; none of the image decoder's."""
    endings = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    found = (path for folder in folders for path in sorted(Path(folder).glob("_C*")))
    return [path for path in found if path.name.endswith(endings)]


# Kept for the life of the process: the declarations end with the object that made them.
_operators = _declare_missing_operators()

with warnings.catch_warnings():
    # torchvision's own JPEG decoder is missing with the operators; images are read with PIL here.
    warnings.filterwarnings("ignore", message="Failed to load image Python extension")
    import torchvision
    from torchvision import datasets, models, transforms

__all__ = ["Preset", "build", "classifiers", "datasets", "default_preset", "models", "torchvision", "transforms"]

# Arguments that would download weights, or print while doing so.
_DOWNLOADS = ("weights", "weights_backbone", "progress")


@dataclass(frozen=True)
class Preset:
    """What a published classifier was evaluated with: input shape (channels, height, width), and how images were made
    ready."""

    input_shape: tuple[int, int, int]
    preparation: Preparation
    num_classes: int


def classifiers() -> list[str]:
    """Names of torchvision's image classifiers, sorted."""
    return list(models.list_models(module=models))


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a classifier of torchvision's by name with random weights; nothing is ever downloaded.

    `arguments` go to torchvision's builder (`num_classes`, `aux_logits`, ...). Raises UsageError for a name that does
    not exist (the message says which do) and for an argument that the builder does not take.
    """
    _check_name(name)
    for refused in _DOWNLOADS:
        if refused in arguments:
            raise UsageError(f"torchvision:{name} is built without `{refused}`: give a file with the weights instead")
    if name in ("googlenet", "inception_v3"):
        # Their own default, said aloud: left out, torchvision warns that it will change.
        arguments.setdefault("init_weights", True)
    try:
        module: nn.Module = models.get_model(name, weights=None, **arguments)
    except Exception as error:  # torchvision checks its arguments with whatever fails first
        raise UsageError(f"torchvision:{name} cannot be built with {arguments}: {cause(error)}") from error
    return module


def default_preset(name: str) -> Preset:
    """Input shape, preparation of images and number of classes of the weights that torchvision publishes for `name`.

    Of several published weights those for the smallest images count: that is the size the builder assumes.
    Read from the metadata that torchvision ships, without downloading anything. Raises UsageError for an unknown name.
    """
    _check_name(name)
    weights = min(models.get_model_weights(name), key=lambda each: each.transforms().crop_size[0])
    transform = weights.transforms()
    size = int(transform.crop_size[0])
    return Preset(
        input_shape=(3, size, size),
        preparation=Preparation(
            tuple(float(value) for value in transform.mean),
            tuple(float(value) for value in transform.std),
            crop_pct=size / transform.resize_size[0],
            interpolation=transform.interpolation.value,
        ),
        num_classes=len(weights.meta["categories"]),
    )


def _check_name(name: str) -> None:
    names = classifiers()
    if name not in names:
        near = did_you_mean(name, names, 4)
        raise UsageError(f"torchvision has no classifier {name!r}{near}; all of them: {', '.join(names)}")
